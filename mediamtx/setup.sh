#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Makes a folder from which Mosquitto, MediaMTX and droidrelay-bridge run, with passwords and a
# certificate of its own.
#   mediamtx/setup.sh FOLDER HOST [ROBOT...]
# HOST: the name or address at which robots and viewers reach this server. ROBOT: added as by
# `droidrelay-bridge robot add ROBOT`. BRIDGE=FILE: where droidrelay-bridge is, if not in PATH.
# Run again, it keeps passwords, users, robots and certificates, and what it replaces as FILE.old.
set -euo pipefail
umask 077
source=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n '3,8s/^# //p' "$0" >&2; exit 64; }
[ $# -ge 2 ] || usage
host=$2
for robot in "${@:3}"; do
    [[ $robot =~ ^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$ ]] || { echo "$robot: not a robot's name: letters, digits, - _ ." >&2; exit 64; }
done
[[ $host =~ ^[A-Za-z0-9.-]+$ ]] || { echo "$host: not a host's name or IPv4 address" >&2; exit 64; }
for tool in openssl mosquitto_passwd; do
    command -v $tool >/dev/null || { echo "$tool is missing: apt-get install openssl mosquitto" >&2; exit 69; }
done
bridge=$(command -v "${BRIDGE:-droidrelay-bridge}") || {
    echo "droidrelay-bridge is missing: install its package, or give BRIDGE=FILE" >&2
    exit 69
}
bridge=$(realpath "$bridge")
mkdir -p "$1/secrets" "$1/data" "$1/tls" "$1/ca"
folder=$(cd "$1" && pwd)
case $folder$bridge in *[[:space:]\|\&\\\"\$]*) echo "$folder: take folders without blanks and | & \\ \" \$" >&2; exit 64 ;; esac

# Letters and digits only, because RTMP clients disagree about everything else.
for name in owner bridge-mqtt mediamtx share; do
    [ -s "$folder/secrets/$name.pass" ] || openssl rand -hex 24 >"$folder/secrets/$name.pass"
done

# Its key makes certificates that robots trust: nobody but root, or who runs this, reads it.
chmod 700 "$folder/ca"
for file in ca.key ca.srl; do
    [ ! -e "$folder/tls/$file" ] || mv "$folder/tls/$file" "$folder/ca/$file"
done

# Whoever has a certificate of a public authority puts it in the place of server.crt and
# server.key, and takes ca.crt away.
if [ ! -e "$folder/tls/server.crt" ]; then
    # For this host and no other, neither by name nor by address.
    kind=DNS
    names="critical,permitted;DNS:$host,excluded;IP:0.0.0.0/0.0.0.0,excluded;IP:0:0:0:0:0:0:0:0/0:0:0:0:0:0:0:0"
    if [[ $host =~ ^[0-9.]+$ ]]; then
        kind=IP
        names="critical,permitted;IP:$host/255.255.255.255,permitted;DNS:invalid"
    fi
    (
        cd "$folder/tls"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
            -subj "/CN=Droidrelay of $host" -keyout ../ca/ca.key -out ca.crt \
            -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext "nameConstraints=$names" -addext keyUsage=critical,keyCertSign,cRLSign
        # Its name stands in subjectAltName: OpenSSL takes an address in CN for a name that is not allowed.
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
            -subj "/CN=Droidrelay server" -keyout server.key -out server.csr
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ../ca/ca.key -CAserial ../ca/ca.srl -CAcreateserial -days 3650 -out server.crt \
            -extfile <(printf 'subjectAltName=%s:%s\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n' $kind "$host")
        rm server.csr
    ) 2>"$folder/tls/log" || { cat "$folder/tls/log" >&2; exit 70; }
    rm -f "$folder/tls/log"
fi

hash() { "$bridge" hash-password --sha256 <"$folder/secrets/$1.pass"; }
fill() {
    [ ! -e "$folder/$2" ] || cp -p "$folder/$2" "$folder/$2.old"
    # The secrets by standard input, because everybody may see a command line.
    sed -f - "$source/$1" >"$folder/$2.new" <<SED
s|%FOLDER%|$folder|g
s|%HOST%|$host|g
s|%BRIDGE%|$bridge|g
s|%PAGE%|https://$host:8443|g
s|%OWNER-HASH%|$(hash owner)|
s|%MEDIAMTX-HASH%|$(hash mediamtx)|
s|%MEDIAMTX%|$(cat "$folder/secrets/mediamtx.pass")|
SED
    mv "$folder/$2.new" "$folder/$2"
}
fill mediamtx.yml mediamtx.yml
fill mosquitto/mosquitto.conf mosquitto.conf
# These hold robots and users that came later.
[ -e "$folder/acl" ] || cp "$source/mosquitto/acl" "$folder/acl"
[ -e "$folder/bridge.toml" ] || fill bridge.toml bridge.toml
if [ ! -e "$folder/passwd" ]; then
    # Hashed in the file, so that no command line shows the password.
    echo "bridge:$(cat "$folder/secrets/bridge-mqtt.pass")" >"$folder/passwd"
    mosquitto_passwd -U "$folder/passwd"
fi
"$bridge" --config "$folder/bridge.toml" --check
for robot in "${@:3}"; do
    [ -e "$folder/secrets/robots/$robot" ] || "$bridge" --config "$folder/bridge.toml" robot add "$robot"
done

# Run by root, each server has a user of its own, who reads what it needs and no more.
has() { id "$1" >/dev/null 2>&1; }
if [ "$(id -u)" = 0 ]; then
    # MediaMTX watches the folders of its configuration and certificate.
    chmod 755 "$folder" "$folder/tls"
    chmod 711 "$folder/secrets"
    chmod 644 "$folder/mosquitto.conf" "$folder"/tls/*.crt
    ! has mosquitto || chown -R mosquitto: "$folder/data" "$folder/passwd" "$folder/acl"
    give() {
        local user=$1 file
        ! has "$user" || for file in "${@:2}"; do
            chgrp "$user" "$folder/$file"
            chmod 640 "$folder/$file"
        done
    }
    give droidrelay-media mediamtx.yml secrets/mediamtx.pass
    give droidrelay-bridge bridge.toml secrets/bridge-mqtt.pass secrets/share.pass
    for group in droidrelay-tls mosquitto; do
        if getent group $group >/dev/null; then
            chgrp $group "$folder/tls/server.key"
            chmod 640 "$folder/tls/server.key"
            break
        fi
    done
fi

cat <<TEXT
$folder is ready. Start the servers with
  mosquitto -c $folder/mosquitto.conf
  mediamtx $folder/mediamtx.yml
  $bridge --config $folder/bridge.toml
The page is https://$host:8443/: sign in as owner, with the password in
  $folder/secrets/owner.pass
Robots: $bridge --config $folder/bridge.toml robot add NAME
TEXT
