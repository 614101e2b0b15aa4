#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Makes a folder from which Mosquitto, MediaMTX and droidrelay-bridge run, with passwords and a
# certificate of its own, and keeps it.
#   setup.sh FOLDER HOST [ROBOT...] [--plain]   makes it, or brings it up to this version
#   setup.sh FOLDER                             the same again, with FOLDER/server.conf as it is
#   setup.sh FOLDER --rename HOST               another name or address, everywhere or nowhere
#   setup.sh FOLDER --check                     are configuration and certificate right?
#   setup.sh FOLDER --renew                     renews the certificate of the own CA when it is due
#   setup.sh FOLDER --certificate CERT KEY [CA] takes another certificate, if it is right
#   setup.sh FOLDER --acme EMAIL                takes a public one, by certbot
# HOST: the name or address at which robots and viewers reach this server. ROBOT: added as by
# `droidrelay-bridge robot add ROBOT`. --plain: also without encryption, for the Python scripts.
# BRIDGE=FILE: where droidrelay-bridge is, if neither beside this script nor in PATH.
# What you have changed in a file that it made stays; what does not fit is shown, and nothing done.
set -euo pipefail
umask 077
source=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n '5,17s/^# //p' "$0" >&2; exit 64; }
# fail CODE TEXT: nothing has been changed.
fail() { printf '%s\n' "$2" >&2; exit "$1"; }

[ $# -ge 1 ] || usage
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
task=setup host='' plain='' robots=() given=()
case ${1:-} in
--rename) [ $# = 2 ] || usage; task=rename host=$2 ;;
--check | --renew) [ $# = 1 ] || usage; task=${1#--} ;;
--certificate) [ $# = 3 ] || [ $# = 4 ] || usage; task=certificate given=("${@:2}") ;;
--acme) [ $# = 2 ] || usage; task=acme given=("$2") ;;
*)
    # An empty one is none: containers get what the environment says.
    case ${1:-} in -*) ;; *) host=${1:-} && shift $(($# > 0)) ;; esac
    for word; do
        case $word in
        --plain) plain=yes ;;
        -*) usage ;;
        *) robots+=("$word") ;;
        esac
    done
    ;;
esac
for robot in ${robots[@]+"${robots[@]}"}; do
    [[ $robot =~ ^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$ ]] || fail 64 "$robot: not a robot's name: letters, digits, - _ ."
done
for tool in openssl mosquitto_passwd; do
    command -v $tool >/dev/null || fail 69 "$tool is missing: apt-get install openssl mosquitto"
done
[ -n "${BRIDGE:-}" ] || [ ! -x "$source/droidrelay-bridge" ] || BRIDGE=$source/droidrelay-bridge
bridge=$(command -v "${BRIDGE:-droidrelay-bridge}") ||
    fail 69 "droidrelay-bridge is missing: install its package, or give BRIDGE=FILE"
bridge=$(realpath "$bridge")
case $folder$bridge in *[[:space:]\|\&\\\"\$]*) fail 64 "$folder: take folders without blanks and | & \\ \" \$" ;; esac
exec 9>"$folder/.lock"
flock 9

# --- settings: the one file that is the user's alone ----------------------------------------------

settings=$folder/server.conf
HOST='' PLAIN=no LIVE_STREAM=no LOCAL_MQTT_PORT=''
if [ -e "$settings" ]; then
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
        '' | '#'*) ;;
        HOST=* | PLAIN=* | LIVE_STREAM=* | LOCAL_MQTT_PORT=*) printf -v "${line%%=*}" %s "${line#*=}" ;;
        *) fail 78 "$settings: \"$line\" is not known: it has HOST=, PLAIN=, LIVE_STREAM= and LOCAL_MQTT_PORT=" ;;
        esac
    done <"$settings"
elif [ -e "$folder/bridge.toml" ]; then
    # Of a version that had no such file: the certificate was made for this host.
    HOST=$(sed -n 's|^rtsp = "rtsps://\(.*\):8322/{path}"$|\1|p' "$folder/bridge.toml")
fi
if [ -n "$HOST" ]; then
    [ $task != setup ] || [ -z "$host" ] || [ "$host" = "$HOST" ] ||
        fail 65 "this server is $HOST, not $host. To give it that name: $0 $folder --rename $host"
fi
old_host=$HOST
HOST=${host:-$HOST}
[ -n "$HOST" ] || [ "${RUN_BY:-}" != compose ] ||
    fail 64 "which host? HOST=cloud.example docker compose up -d, with the name or address at which robots and viewers reach this server"
[ -n "$HOST" ] || fail 64 "which host? $0 $folder HOST, the name or address at which robots and viewers reach this server"
[[ $HOST =~ ^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$ ]] || fail 64 "$HOST: not a host's name or IPv4 address"
is_address() { [[ $1 =~ ^[0-9.]+$ ]]; }
if [ $task = rename ] && ! is_address "$HOST" && ! getent ahosts "$HOST" >/dev/null; then
    fail 68 "$HOST does not resolve: nothing is changed. Is it spelled right, and is its DNS record there?"
fi
[ -z "$plain" ] || PLAIN=yes LIVE_STREAM=yes
for name in PLAIN LIVE_STREAM; do
    case ${!name} in yes | no) ;; *) fail 78 "$settings: $name=${!name}: yes or no" ;; esac
done
# Another broker of this machine has 1883, now or after its next start.
LOCAL_MQTT_PORT=${LOCAL_MQTT_PORT:-18830}
[[ $LOCAL_MQTT_PORT =~ ^[0-9]+$ ]] || fail 78 "$settings: LOCAL_MQTT_PORT=$LOCAL_MQTT_PORT: not a port"

# --- certificates ---------------------------------------------------------------------------------

# Browsers take none that is valid for longer (Apple: 825 days of a private CA, 398 of a public one).
DAYS=397
seconds_of() { date -d "$(openssl x509 -noout "-$2" -in "$1" | cut -d= -f2)" +%s; }

# The CA: for this host and no other, neither by name nor by address. $1: folder with tls and ca.
make_ca() {
    local names="critical,permitted;DNS:$HOST,excluded;IP:0.0.0.0/0.0.0.0,excluded;IP:0:0:0:0:0:0:0:0/0:0:0:0:0:0:0:0"
    ! is_address "$HOST" || names="critical,permitted;IP:$HOST/255.255.255.255,permitted;DNS:invalid"
    quietly openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
        -subj "/CN=Droidrelay of $HOST" -keyout "$1/ca/ca.key" -out "$1/tls/ca.crt" \
        -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext "nameConstraints=$names" \
        -addext keyUsage=critical,keyCertSign,cRLSign
    rm -f "$1/tls/server.crt" "$1/tls/server.key"
}
# The server's certificate by it. The key stays when there is one, so that a renewal changes one file.
make_certificate() {
    local kind=DNS
    ! is_address "$HOST" || kind=IP
    [ -e "$1/tls/server.key" ] ||
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$1/tls/server.key"
    # The name stands in subjectAltName: OpenSSL takes an address in CN for a name that is not allowed.
    openssl req -new -key "$1/tls/server.key" -subj "/CN=Droidrelay server" |
        quietly openssl x509 -req -CA "$1/tls/ca.crt" -CAkey "$1/ca/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
            -days $DAYS -out "$1/tls/server.crt" -extfile <(printf '%s\n' "subjectAltName=$kind:$HOST" \
                basicConstraints=critical,CA:FALSE keyUsage=critical,digitalSignature extendedKeyUsage=serverAuth \
                subjectKeyIdentifier=hash authorityKeyIdentifier=keyid)
}
quietly() {
    "$@" 2>"$stage/log" || { cat "$stage/log" >&2; exit 70; }
}
# Is the server's certificate one of the own CA?
is_own() {
    [ -e "$1/ca/ca.key" ] && [ -e "$1/tls/ca.crt" ] && [ -e "$1/tls/server.crt" ] &&
        openssl verify -no_check_time -CAfile "$1/tls/ca.crt" "$1/tls/server.crt" >/dev/null 2>&1
}
# With a third of its life left, or made for longer than browsers take.
is_due() {
    local begin end
    begin=$(seconds_of "$1" startdate)
    end=$(seconds_of "$1" enddate)
    [ $((end - begin)) -gt $((DAYS * 86400)) ] || [ $((end - $(date +%s))) -lt $(((end - begin) / 3)) ]
}
# What is wrong with certificate and key in folder $1; nothing, where all is right.
certificate_faults() {
    local crt=$1/server.crt key=$1/server.key match=(-verify_hostname "$HOST")
    ! is_address "$HOST" || match=(-verify_ip "$HOST")
    openssl x509 -noout -in "$crt" 2>/dev/null || { echo "$crt: no certificate in PEM"; return; }
    openssl pkey -noout -in "$key" 2>/dev/null || { echo "$key: no private key in PEM without a password"; return; }
    [ "$(openssl x509 -noout -pubkey -in "$crt")" = "$(openssl pkey -pubout -in "$key")" ] ||
        echo "$key is not the key of $crt"
    openssl verify -no_check_time -partial_chain -trusted "$crt" "${match[@]}" "$crt" >/dev/null 2>&1 ||
        echo "$crt is not for $HOST"
    openssl x509 -noout -checkend 0 -in "$crt" >/dev/null || echo "$crt has expired: $(openssl x509 -noout -enddate -in "$crt")"
    [ "$(seconds_of "$crt" startdate)" -le "$(date +%s)" ] ||
        echo "$crt is not valid yet ($(openssl x509 -noout -startdate -in "$crt")): is this machine's clock right?"
    [ ! -e "$1/ca.crt" ] || openssl verify -no_check_time -CAfile "$1/ca.crt" -untrusted "$crt" "$crt" >/dev/null 2>&1 ||
        echo "$crt is not signed by $1/ca.crt, which robots are given: replace that, or remove it"
}

# --- who reads what -------------------------------------------------------------------------------

has() { id "$1" >/dev/null 2>&1; }
key_group() {
    local group
    for group in droidrelay-tls mosquitto; do
        ! getent group $group >/dev/null || { echo $group; return; }
    done
}
# Run by root, each server has a user of its own, who reads what it needs and no more.
give_rights() {
    local at=$1 group
    chmod 700 "$at/ca" "$at/.made"
    [ "$(id -u)" = 0 ] || return 0
    # MediaMTX watches the folders of its configuration and certificate.
    chmod 755 "$at" "$at/tls"
    chmod 711 "$at/secrets"
    chmod 644 "$at/mosquitto.conf" "$at"/tls/*.crt
    ! has mosquitto || chown mosquitto: "$at/passwd" "$at/acl"
    chmod 640 "$at/server.conf"
    give() {
        local user=$1 file
        ! has "$user" || for file in "${@:2}"; do
            chgrp "$user" "$at/$file"
            chmod 640 "$at/$file"
        done
    }
    give droidrelay-media mediamtx.yml secrets/mediamtx.pass
    give droidrelay-bridge bridge.toml secrets/bridge-mqtt.pass secrets/share.pass
    group=$(key_group)
    if [ -n "$group" ]; then
        chgrp "$group" "$at/tls/server.key"
        chmod 640 "$at/tls/server.key"
    fi
}
# Which server cannot read its files, and who else can.
right_faults() {
    local key=$folder/tls/server.key group user
    [ $((0$(stat -c %a "$key") & 7)) = 0 ] || echo "$key: everybody may read it; chmod 640 it"
    [ "$(id -u)" = 0 ] || return 0
    group=$(key_group)
    [ -n "$group" ] && command -v setpriv >/dev/null || return 0
    # From their own folder, as units show it also where it lies in a home.
    cd "$folder/tls"
    for user in mosquitto droidrelay-media droidrelay-bridge; do
        ! has $user || setpriv --reuid=$user --regid=$user --groups="$(id -g $user),$(getent group "$group" | cut -d: -f3)" \
            cat server.crt server.key >/dev/null 2>&1 ||
            echo "$user cannot read $folder/tls/server.crt and server.key: chgrp $group, mode 640; or take them by $0 $folder --certificate CERT KEY"
    done
}

if [ $task = check ]; then
    faults=$(
        certificate_faults "$folder/tls"
        right_faults
        "$bridge" --config "$folder/bridge.toml" --check 2>&1 >/dev/null || true
    )
    [ -z "$faults" ] || fail 78 "$faults"
    echo "$folder is right: $HOST, certificate until $(date -d "@$(seconds_of "$folder/tls/server.crt" enddate)" +%F)"
    exit 0
fi

# --- the next state of the folder, made and checked beside it --------------------------------------

stage=$folder/.new
rm -rf "$stage"
mkdir "$stage"
trap 'rm -rf "$stage"' EXIT
owned=(server.conf mediamtx.yml mosquitto.conf acl bridge.toml passwd)
for part in secrets tls ca .made "${owned[@]}"; do
    [ ! -e "$folder/$part" ] || cp -a "$folder/$part" "$stage/"
done
mkdir -p "$stage/secrets" "$stage/tls" "$stage/ca" "$stage/.made" "$folder/data" "$folder/enroll"
said=$stage/said
: >"$said"

# What has changed takes the place of what was, file by file, with its rights.
take() {
    local file kept
    give_rights "$stage"
    kept=$(cd "$stage" && find secrets tls ca .made "${owned[@]}" -type f)
    while IFS= read -r file; do
        cmp -s "$stage/$file" "$folder/$file" && continue
        mkdir -p "$(dirname "$folder/$file")"
        # Who watches it sees one change, and the file is whole at each time.
        mv "$stage/$file" "$folder/$file"
    done <<<"$kept"
    (cd "$folder" && find tls -type f) | while IFS= read -r file; do
        grep -qxF "$file" <<<"$kept" || rm "$folder/$file"
    done
    give_rights "$folder"
    [ "$(id -u)" != 0 ] || ! has mosquitto || chown -R mosquitto: "$folder/data"
    # Each invitation to a robot is good once: the bridge notes that there.
    [ "$(id -u)" != 0 ] || ! has droidrelay-bridge || chown -R droidrelay-bridge: "$folder/enroll"
}

case $task in
renew)
    is_own "$folder" || { echo "the certificate is not of the own CA: nothing to renew here"; exit 0; }
    is_due "$folder/tls/server.crt" || {
        echo "the certificate lasts until $(date -d "@$(seconds_of "$folder/tls/server.crt" enddate)" +%F): not due"
        exit 0
    }
    make_certificate "$stage"
    faults=$(certificate_faults "$stage/tls")
    [ -z "$faults" ] || fail 78 "$faults"
    take
    echo "the certificate is renewed, until $(date -d "@$(seconds_of "$folder/tls/server.crt" enddate)" +%F)"
    exit 0
    ;;
certificate)
    rm -f "$stage/tls/ca.crt"
    cat "${given[0]}" >"$stage/tls/server.crt"
    cat "${given[1]}" >"$stage/tls/server.key"
    [ ${#given[@]} = 2 ] || cat "${given[2]}" >"$stage/tls/ca.crt"
    faults=$(certificate_faults "$stage/tls")
    [ -z "$faults" ] || fail 65 "${faults//$stage/the given}
nothing is changed"
    take
    echo "the certificate is taken, until $(date -d "@$(seconds_of "$folder/tls/server.crt" enddate)" +%F)"
    exit 0
    ;;
acme)
    is_address "$HOST" && fail 65 "$HOST is an address: a public certificate is for a name (--rename)"
    command -v certbot >/dev/null || fail 69 "certbot is missing: apt-get install certbot"
    flock -u 9
    # By port 80, which must be open for it. Debian's certbot renews by a timer of its own and runs
    # the hook again. The key stays the same, so that a renewal changes one file.
    # shellcheck disable=SC2016,SC2086
    certbot certonly --standalone --non-interactive --agree-tos --reuse-key --email "${given[0]}" \
        --domain "$HOST" ${CERTBOT_OPTIONS:-} --deploy-hook "env BRIDGE=$bridge $source/setup.sh $folder \
--certificate \"\$RENEWED_LINEAGE/fullchain.pem\" \"\$RENEWED_LINEAGE/privkey.pem\"" ||
        fail 70 "no certificate: nothing is changed. Does $HOST lead here, and is port 80 open?"
    exit 0
    ;;
esac

if [ ! -e "$settings" ]; then
    cat >"$stage/server.conf" <<'TEXT'
# Settings of this server. Change them here, then run setup.sh (or install.sh) again; the other
# files of this folder are made from this one. Lines that you change there stay, unless a new
# version changes the same lines: then setup.sh shows both, and changes nothing.

# The name or address at which robots and viewers reach this server. Change it by
# `setup.sh FOLDER --rename HOST`: certificates and robots depend on it.
HOST=
# yes: also without encryption, for robots and apps that know nothing else: MQTT 1883, RTMP 1935,
# HTTP 8080.
PLAIN=
# yes: the robot "robot" with topic robot/stream and path live/stream, which POST /stream/start
# starts, as with the Python scripts; the app's password is in secrets/app.pass.
LIVE_STREAM=
# MQTT between the broker and the bridge, on loopback.
LOCAL_MQTT_PORT=
TEXT
fi
sed -i "s/^HOST=.*/HOST=$HOST/; s/^PLAIN=.*/PLAIN=$PLAIN/; s/^LIVE_STREAM=.*/LIVE_STREAM=$LIVE_STREAM/; s/^LOCAL_MQTT_PORT=.*/LOCAL_MQTT_PORT=$LOCAL_MQTT_PORT/" "$stage/server.conf"

# Letters and digits only, because RTMP clients disagree about everything else.
secrets=(owner bridge-mqtt mediamtx share)
[ "$LIVE_STREAM" = no ] || secrets+=(app)
for name in "${secrets[@]}"; do
    [ -s "$stage/secrets/$name.pass" ] || openssl rand -hex 24 >"$stage/secrets/$name.pass"
done

# The CA's key makes certificates that robots trust: nobody but root, or who runs this, reads it.
for file in ca.key ca.srl; do
    [ ! -e "$stage/tls/$file" ] || mv "$stage/tls/$file" "$stage/ca/$file"
done
if [ ! -e "$stage/tls/server.crt" ]; then
    make_ca "$stage"
    make_certificate "$stage"
elif [ "$HOST" != "$old_host" ]; then
    faults=$(certificate_faults "$stage/tls")
    if [ -n "$faults" ]; then
        make_ca "$stage"
        make_certificate "$stage"
    fi
elif is_own "$stage" && is_due "$stage/tls/server.crt"; then
    make_certificate "$stage"
fi

hash() { "$bridge" hash-password --sha256 <"$stage/secrets/$1.pass"; }
# Lines from "#%KEY VALUE" to "#%end" are for that value of a setting.
no() { [ "$1" = no ] && echo yes || echo no; }
# place TEMPLATE FILE: with what the user has changed in it since it was made.
place() {
    local new=$stage/$2.next mine=$stage/$2 base=$stage/.made/$2
    # The secrets by standard input, because everybody may see a command line.
    sed -f - "$source/$1" >"$new" <<SED
/^#%PLAIN $(no "$PLAIN")\$/,/^#%end\$/d
/^#%LIVE_STREAM $(no "$LIVE_STREAM")\$/,/^#%end\$/d
/^#%/d
s|%FOLDER%|$folder|g
s|%HOST%|$HOST|g
s|%BRIDGE%|$bridge|g
s|%LOCAL_MQTT_PORT%|$LOCAL_MQTT_PORT|g
s|%OWNER-HASH%|$(hash owner)|
s|%APP-HASH%|$([ "$LIVE_STREAM" = no ] || hash app)|
s|%MEDIAMTX-HASH%|$(hash mediamtx)|
s|%MEDIAMTX%|$(cat "$stage/secrets/mediamtx.pass")|
SED
    if [ ! -e "$mine" ]; then
        cp "$new" "$mine"
    elif [ ! -e "$base" ]; then
        # Of a version that kept no copy of what it made.
        cmp -s "$new" "$mine" || { echo "$2 is kept as it is. What this version has otherwise:" && differ "$mine" "$new" "$2"; } >>"$said"
    elif ! cmp -s "$base" "$new"; then
        { echo "$2: this version has otherwise:" && differ "$base" "$new" "$2"; } >>"$said"
        if ! diff3 -m -E "$mine" "$base" "$new" >"$stage/merged"; then
            show_conflict "$2" >&2
            exit 65
        fi
        cat "$stage/merged" >"$mine"
    fi
    mv "$new" "$base"
}
# A difference, without the one password that stands in these files.
differ() { diff -U 1 --label "$3" --label "$3, new" "$1" "$2" | masked || true; }
masked() { sed -f <(printf 's|%s|***|g\n' "$(cat "$stage/secrets/mediamtx.pass")"); }
show_conflict() {
    cat "$said"
    echo "$1: you and this version have changed the same lines. Nothing is changed; make them alike, then try again:"
    sed -n '/^<<<<<<< /,/^>>>>>>> /p' "$stage/merged" | masked |
        sed "s|^<<<<<<< .*|<<<<<<< yours|; s|^>>>>>>> .*|>>>>>>> this version|; /^||||||| /s|.*|\|\|\|\|\|\|\| as it was made|"
}
place mediamtx.yml mediamtx.yml
place mosquitto/mosquitto.conf mosquitto.conf
place mosquitto/acl acl
place bridge.toml bridge.toml
if [ ! -e "$stage/passwd" ]; then
    # Hashed in the file, so that no command line shows the password.
    echo "bridge:$(cat "$stage/secrets/bridge-mqtt.pass")" >"$stage/passwd"
    mosquitto_passwd -U "$stage/passwd"
fi
faults=$(certificate_faults "$stage/tls")
[ -z "$faults" ] || fail 65 "${faults//$stage/$folder}
nothing is changed"
"$bridge" --config "$stage/bridge.toml" --check >/dev/null || fail 65 "nothing is changed"
take
cat "$said"
# So that later commands of compose know it too.
if [ -n "${DOTENV:-}" ] && ! grep -qsxF "HOST=$HOST" "$DOTENV"; then
    { ! grep -sv '^HOST=' "$DOTENV" || true; echo "HOST=$HOST"; } >"$stage/env"
    cat "$stage/env" >"$DOTENV"
    chmod 644 "$DOTENV"
fi
[ "$LIVE_STREAM" = no ] || robots=(robot ${robots[@]+"${robots[@]}"})
for robot in ${robots[@]+"${robots[@]}"}; do
    [ -e "$folder/secrets/robots/$robot" ] || "$bridge" --config "$folder/bridge.toml" robot add "$robot"
done

cat <<TEXT
$folder is ready.
The page is https://$HOST:8443/: sign in as owner, with the password in
  $folder/secrets/owner.pass
Robots: $bridge --config $folder/bridge.toml robot add NAME
TEXT
if [ "$task" = rename ] && [ "$HOST" != "$old_host" ]; then
    [ -n "${RUN_BY:-}" ] || echo "Restart the three servers."
    echo "Give each robot the new name and $folder/tls/ca.crt:"
    [ ! -d "$folder/secrets/robots" ] || ls "$folder/secrets/robots"
elif [ -z "${RUN_BY:-}" ]; then
    cat <<TEXT
Start the servers with
  mosquitto -c $folder/mosquitto.conf
  mediamtx $folder/mediamtx.yml
  $bridge --config $folder/bridge.toml
TEXT
fi
