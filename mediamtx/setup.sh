#!/bin/bash
# Makes a folder from which MediaMTX and Mosquitto run, with passwords of its own.
#   mediamtx/setup.sh FOLDER
# Run again, it keeps the passwords in FOLDER/secrets, and what it replaces as FILE.old.
set -euo pipefail
umask 077
source=$(cd "$(dirname "$0")" && pwd)
[ $# = 1 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 64; }
for tool in openssl mosquitto_passwd; do
    command -v $tool >/dev/null || { echo "$tool is missing: apt-get install openssl mosquitto" >&2; exit 69; }
done
mkdir -p "$1/secrets" "$1/data"
folder=$(cd "$1" && pwd)
case $folder in *[[:space:]\|\&\\]*) echo "$folder: take a folder without blanks and | & \\" >&2; exit 64 ;; esac

# Letters and digits only, because RTMP clients disagree about everything else.
for name in rtmp viewer mqtt bridge-mqtt; do
    [ -s "$folder/secrets/$name.pass" ] || openssl rand -hex 24 >"$folder/secrets/$name.pass"
done
secret() { head -n 1 "$folder/secrets/$1.pass" | tr -d '\r\n'; }
sha256() { echo "sha256:$(secret "$1" | openssl dgst -binary -sha256 | openssl base64)"; }

for file in mediamtx.yml mosquitto.conf acl; do
    [ ! -e "$folder/$file" ] || mv "$folder/$file" "$folder/$file.old"
done

awk -v publisher="$(sha256 rtmp)" -v viewer="$(sha256 viewer)" '
    /^  - user:/ { user = $3 }
    /^    pass:/ && user == "mypublisher" { sub(/sha256:UNSET/, publisher) }
    /^    pass:/ && user == "myviewer" { sub(/sha256:UNSET/, viewer) }
    { print }
' "$source/mediamtx.yml" >"$folder/mediamtx.yml"

sed "s|%FOLDER%|$folder|" "$source/mosquitto/mosquitto.conf" >"$folder/mosquitto.conf"
cp "$source/mosquitto/acl" "$folder/acl"
# Hashed in the file, so that no command line shows a password.
printf '%s:%s\n' robot1 "$(secret mqtt)" bridge "$(secret bridge-mqtt)" >"$folder/passwd"
mosquitto_passwd -U "$folder/passwd"

# Started by root, Mosquitto gives root up before it reads these.
if [ "$(id -u)" = 0 ] && id mosquitto >/dev/null 2>&1; then
    chmod 711 "$folder"
    chown -R mosquitto: "$folder/data" "$folder/passwd" "$folder/acl"
fi

cat <<TEXT
$folder is ready. Start the servers with
  mosquitto -c $folder/mosquitto.conf
  mediamtx $folder/mediamtx.yml
The passwords are in $folder/secrets:
  mqtt.pass         robot1 at Mosquitto       -> to the robot, mqttvalve password-file
  rtmp.pass         mypublisher at MediaMTX   -> to the robot, rtmpauthsink password-file
  bridge-mqtt.pass  bridge at Mosquitto       -> droidrelay-bridge, password-file in [mqtt]
  viewer.pass       myviewer at MediaMTX      -> to whoever watches
TEXT
