#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Makes this Debian the server: Mosquitto, MediaMTX and droidrelay-bridge as systemd services.
#   sudo install.sh HOST [ROBOT...] [--plain]   installs it, or brings it up to this version
#   sudo install.sh --check                     one line of health for each part
#   sudo install.sh --rename HOST               another name or address, everywhere or nowhere
#   sudo install.sh --acme EMAIL                a certificate of a public authority, and its renewal
#   sudo install.sh --uninstall                 takes away all but recordings
# HOST, ROBOT and --plain: see setup.sh. All that is yours is in /srv/droidrelay (or FOLDER=...), the
# programs and these scripts in /usr/local/lib/droidrelay. Needed before: the package
# droidrelay-bridge (or BRIDGE=FILE). MediaMTX is MEDIAMTX=FILE, or the one in PATH, or its release
# MEDIAMTX_VERSION, fetched from MEDIAMTX_RELEASES and checked by its checksum.
set -euo pipefail
umask 022
source=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n '4,8s/^# //p' "$0" >&2; exit 64; }
fail() { printf '%s\n' "$2" >&2; exit "$1"; }
[ $# -ge 1 ] || usage
[ "$(id -u)" = 0 ] || fail 77 "run it as root: sudo $0 $*"
lib=/usr/local/lib/droidrelay
units=${UNITS:-/etc/systemd/system}
# An installation knows its folder.
[ ! -e $lib/folder ] || FOLDER=${FOLDER:-$(cat $lib/folder)}
folder=${FOLDER:-/srv/droidrelay}
ours=(droidrelay-broker droidrelay-media droidrelay-bridge)
runs_systemd() { [ -d /run/systemd/system ]; }
is_installed() { [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null) == ?i* ]]; }
setting() { sed -n "s/^$1=//p" "$folder/server.conf" 2>/dev/null || true; }

# --- health ---------------------------------------------------------------------------------------

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
is_healthy() {
    (
        exec 3<>/dev/tcp/127.0.0.1/8080
        printf 'GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
        read -r -t 5 -u 3 _ code _ && [ "$code" = 200 ]
    ) 2>/dev/null
}
# tell PART ok|note|wrong TEXT
tell() {
    printf '%-12s %-6s %s\n' "$1" "$2" "$3"
    [ "$2" != wrong ] || all_well=
}
# service PART UNIT TEXT PORT...
service() {
    local port state
    state=$(systemctl is-active "$2" || true)
    if [ "$state" != active ]; then
        tell "$1" wrong "$2 is $state: $(journalctl -q -u "$2" -n 1 -o cat 2>/dev/null); see journalctl -u $2"
        return
    fi
    for port in "${@:4}"; do
        answers "$port" || { tell "$1" wrong "$2 runs, but port $port does not answer; see journalctl -u $2"; return; }
    done
    tell "$1" ok "$3"
}
health() {
    local host addresses known address plain=''
    all_well=yes
    host=$(setting HOST)
    [ "$(setting PLAIN)" = no ] || plain=" and, without encryption,"
    service broker droidrelay-broker "Mosquitto: MQTT with TLS on 8883${plain:+$plain 1883}" 8883 ${plain:+1883}
    service media droidrelay-media "MediaMTX: RTMPS on 1936${plain:+$plain RTMP on 1935}, RTSPS on 8322, WebRTC on 8189" 1936 8322 8889 ${plain:+1935}
    service bridge droidrelay-bridge "https://$host:8443/ (owner, password in $folder/secrets/owner.pass)" 8443 8080
    is_healthy || tell bridge wrong "it does not reach the broker; see journalctl -u droidrelay-bridge"
    if said=$("$lib/setup.sh" "$folder" --check 2>&1); then
        tell certificate ok "${said##*, }"
    else
        tell certificate wrong "${said//$'\n'/; }"
    fi
    addresses=$(getent ahosts "$host" | awk '{ print $1 }' | sort -u | tr '\n' ' ')
    known=$(ip -o address | awk '{ sub("/.*", "", $4); print $4 }')
    if [ -z "$addresses" ]; then
        tell name wrong "$host does not resolve: is it spelled right (--rename), and is its DNS record there?"
    else
        local is_here=
        for address in $addresses; do ! grep -qxF "$address" <<<"$known" || is_here=yes; done
        if [ -n "$is_here" ]; then
            tell name ok "$host is this machine"
        else
            tell name note "$host is ${addresses% }, no address of this machine: right only if that forwards its ports here"
        fi
    fi
    if [ "$(timedatectl show -P NTPSynchronized 2>/dev/null)" = yes ]; then
        tell clock ok "synchronised"
    else
        tell clock note "it is $(date -u +%FT%TZ) here, and nothing keeps it right: apt-get install systemd-timesyncd"
    fi
    [ -n "$all_well" ]
}

# --- ports ----------------------------------------------------------------------------------------

# taken FAMILY PORT: who listens there, if it is none of ours.
taken() {
    local line pid
    while IFS= read -r line; do
        [ -n "$line" ] || continue
        pid=$(sed -n 's/.*pid=\([0-9]*\).*/\1/p' <<<"$line")
        [ -z "$pid" ] || ! grep -q '/droidrelay-[a-z]*\.service' "/proc/$pid/cgroup" 2>/dev/null || continue
        echo "port $2 ($1) is taken by $(sed -n 's/.*(("\([^"]*\)".*/\1/p' <<<"$line") (process ${pid:-unknown}): end that, or move it to another port"
    done < <(ss -H -lnp "--$1" "sport = :$2")
}
check_ports() {
    local port busy plain=()
    ! grep -qs '^PLAIN=yes' "$folder/server.conf" && [[ " $* " != *" --plain "* ]] || plain=(1883 1935)
    busy=$(
        for port in 8883 18830 1936 8322 8888 8889 8189 8443 8080 9997 9998 ${plain[@]+"${plain[@]}"}; do taken tcp $port; done
        taken udp 8189
    )
    [ -z "$busy" ] || fail 69 "$busy
nothing is changed"
}

# --- the programs ---------------------------------------------------------------------------------

need_packages() {
    local package missing=() policy=/usr/sbin/policy-rc.d
    for package in "$@"; do is_installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "installing ${missing[*]}"
    # A Mosquitto that comes now is for this server alone: its own service does not start.
    if [[ " ${missing[*]} " == *" mosquitto "* ]] && [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get -q -q update || true
    DEBIAN_FRONTEND=noninteractive apt-get -q -q -y --no-install-recommends install "${missing[@]}" >/dev/null
    [[ " ${missing[*]} " != *" mosquitto "* ]] || ! command -v systemctl >/dev/null || systemctl -q disable mosquitto.service
    printf '%s\n' "${missing[@]}" >>$lib/packages
}

# MediaMTX's release for this machine, as its authors say: the archive, and its line of checksums.
fetch_mediamtx() {
    local version=${MEDIAMTX_VERSION:-1.20.1} arch scratch archive url
    arch=$(dpkg --print-architecture)
    case $arch in amd64 | arm64) ;; *) fail 69 "$arch: releases of MediaMTX are for amd64 and arm64; give MEDIAMTX=FILE" ;; esac
    archive=mediamtx_v${version}_linux_$arch.tar.gz
    url=${MEDIAMTX_RELEASES:-https://github.com/bluenviron/mediamtx/releases/download}/v$version
    echo "fetching $url/$archive"
    need_packages ca-certificates curl
    scratch=$(mktemp -d)
    local file
    for file in checksums.sha256 "$archive"; do
        curl -fsSL --retry 3 --max-time 600 -o "$scratch/$file" "$url/$file" || {
            rm -rf "$scratch"
            fail 69 "$url/$file cannot be fetched: is there a network, and that version? Or give MEDIAMTX=FILE"
        }
    done
    (cd "$scratch" && grep -F " $archive" checksums.sha256 | sed 's,\*,,' | sha256sum --check --strict --status) || {
        rm -rf "$scratch"
        fail 65 "$archive does not have the checksum that its release names: it is not taken"
    }
    tar -xzf "$scratch/$archive" -C "$scratch" mediamtx
    install -m 755 "$scratch/mediamtx" $lib/mediamtx
    rm -rf "$scratch"
}

# keep PROGRAM NAME: in our folder, where no unit is kept from it; a link to what packages own.
keep() {
    local program
    program=$(realpath "$1")
    [ "$program" != "$lib/$2" ] || return 0
    rm -f "$lib/$2"
    case $program in
    /usr/* | /opt/*) ln -s "$program" "$lib/$2" ;;
    *) install -m 755 "$program" "$lib/$2" ;;
    esac
}

# --- the services ---------------------------------------------------------------------------------

# Homes are hidden from services; a folder that lies in one is shown to them.
home=''
case $(realpath -m "$folder") in /home/* | /root/* | /run/user/*) home="ProtectHome=tmpfs\nBindPaths=$folder" ;; esac
write_units() {
    fill() {
        sed -e "s|%FOLDER%|$folder|g; s|%LIB%|$lib|g" -e "${home:+s|^ProtectHome=.*|$home|}" "$1" >"$units/$2"
        chmod 644 "$units/$2"
    }
    mkdir -p "$units/droidrelay-bridge.service.d"
    fill $lib/systemd/droidrelay-broker.service droidrelay-broker.service
    fill $lib/systemd/droidrelay-media.service droidrelay-media.service
    fill $lib/systemd/droidrelay-bridge.conf droidrelay-bridge.service.d/server.conf
    [ -z "$home" ] || printf "$home\n" >>"$units/droidrelay-bridge.service.d/server.conf"
    # The unit of the package, where the bridge came without it.
    if [ ! -e /usr/lib/systemd/system/droidrelay-bridge.service ] && [ ! -e /lib/systemd/system/droidrelay-bridge.service ]; then
        install -m 644 $lib/droidrelay-bridge.service "$units/droidrelay-bridge.service"
    fi
    cat >"$units/droidrelay-certificate.service" <<TEXT
[Unit]
Description=Renew the certificate of the Droidrelay server, if it is due
[Service]
Type=oneshot
ExecStart=$lib/setup.sh $folder --renew
TEXT
    cat >"$units/droidrelay-certificate.timer" <<TEXT
[Unit]
Description=Renew the certificate of the Droidrelay server
[Timer]
OnCalendar=daily
RandomizedDelaySec=6h
Persistent=yes
[Install]
WantedBy=timers.target
TEXT
    # Robots, users and certificates that change are taken at once: MediaMTX looks for itself.
    local watched=(passwd acl bridge.toml tls/server.crt tls/server.key)
    {
        printf '[Unit]\nDescription=Files of the Droidrelay server\n[Path]\n'
        printf "PathChanged=$folder/%s\n" "${watched[@]}"
        printf '[Install]\nWantedBy=multi-user.target\n'
    } >"$units/droidrelay-reload.path"
    cat >"$units/droidrelay-reload.service" <<TEXT
[Unit]
Description=Take changed files of the Droidrelay server
StartLimitIntervalSec=0
[Service]
Type=oneshot
# Several files change together; what changes meanwhile is seen too.
ExecStart=/bin/bash -c 'files() { cd $folder && stat -c "%%i %%z" ${watched[*]}; }; \
  until [ "\$seen" = "\$(files)" ]; do seen=\$(files); sleep 1; [ "\$seen" != "\$(files)" ] || systemctl reload droidrelay-broker droidrelay-bridge; done'
TEXT
}
wait_healthy() {
    local second
    for second in $(seq 40); do
        ! { answers 8883 && answers 1936 && answers 8322 && answers 8443 && is_healthy; } || return 0
        sleep 0.5
    done
    return 1
}
start() {
    systemctl daemon-reload
    systemctl -q enable "${ours[@]}" droidrelay-certificate.timer droidrelay-reload.path
    systemctl restart "${ours[@]}" droidrelay-certificate.timer droidrelay-reload.path
    wait_healthy
}

# --- what is asked for ----------------------------------------------------------------------------

is_there() { [ -d $lib ] || fail 66 "no server is installed here: $0 HOST"; }
case $1 in
--check)
    [ $# = 1 ] || usage
    is_there
    health && exit 0 || exit 69
    ;;
--acme)
    [ $# = 2 ] || usage
    is_there
    need_packages certbot
    $lib/setup.sh "$folder" --acme "$2"
    health || true
    exit 0
    ;;
--rename)
    [ $# = 2 ] || usage
    is_there
    before=$(mktemp)
    trap 'rm -f "$before"' EXIT
    old=(secrets tls ca .made server.conf mediamtx.yml mosquitto.conf acl bridge.toml passwd)
    tar -C "$folder" -cf "$before" "${old[@]}"
    RUN_BY=systemd $lib/setup.sh "$folder" --rename "$2"
    if runs_systemd && ! start; then
        health || true
        tar -C "$folder" -xpf "$before"
        start || true
        fail 70 "the servers do not run as $2: all is as it was"
    fi
    ! runs_systemd || health || true
    exit 0
    ;;
--uninstall)
    [ $# = 1 ] || usage
    is_there
    host=$(setting HOST)
    if runs_systemd; then
        systemctl disable --now droidrelay-reload.path droidrelay-certificate.timer droidrelay-broker droidrelay-media droidrelay-bridge 2>/dev/null || true
    fi
    rm -rf "$units"/droidrelay-{broker,media,certificate,reload}.service "$units/droidrelay-certificate.timer" \
        "$units/droidrelay-reload.path" "$units/droidrelay-bridge.service.d/server.conf"
    rmdir "$units/droidrelay-bridge.service.d" 2>/dev/null || true
    rm -f "$units/droidrelay-bridge.service"
    rm -f /var/lib/systemd/timers/stamp-droidrelay-certificate.timer
    ! runs_systemd || systemctl daemon-reload
    if grep -qs $lib/setup.sh "/etc/letsencrypt/renewal/$host.conf" && command -v certbot >/dev/null; then
        certbot delete --non-interactive --cert-name "$host" >/dev/null 2>&1 || true
    fi
    if is_installed droidrelay-bridge; then
        # As the package left it.
        ! runs_systemd || systemctl -q enable --now droidrelay-bridge || true
    else
        ! id droidrelay-bridge >/dev/null 2>&1 || userdel droidrelay-bridge
    fi
    ! id droidrelay-media >/dev/null 2>&1 || userdel droidrelay-media
    ! getent group droidrelay-tls >/dev/null || groupdel droidrelay-tls
    # What it installed, and nothing else needs.
    [ ! -e $lib/packages ] || while IFS= read -r package; do
        dpkg --purge "$package" >/dev/null 2>&1 || true
    done < <(sort -u $lib/packages)
    rm -rf $lib
    if [ -d "$folder/recordings" ]; then
        find "$folder" -mindepth 1 -maxdepth 1 ! -name recordings -exec rm -rf {} +
        echo "removed; the recordings are in $folder/recordings"
    else
        rm -rf "$folder"
        echo "removed"
    fi
    exit 0
    ;;
-*) usage ;;
esac

case $folder in *[[:space:]\|\&\\\"\$%]*) fail 64 "$folder: take folders without blanks and | & \\ \" \$ %" ;; esac
bridge=$(command -v "${BRIDGE:-droidrelay-bridge}") || bridge=$(command -v $lib/droidrelay-bridge) ||
    fail 69 "droidrelay-bridge is missing: install the package droidrelay-bridge, or give BRIDGE=FILE"
[ -z "${MEDIAMTX:-}" ] || command -v "$MEDIAMTX" >/dev/null || fail 69 "MEDIAMTX=$MEDIAMTX is no program"
mkdir -p $lib
need_packages mosquitto openssl iproute2
check_ports "$@"
keep "$bridge" droidrelay-bridge
if mediamtx=$(command -v "${MEDIAMTX:-mediamtx}"); then
    keep "$mediamtx" mediamtx
elif [ ! -x $lib/mediamtx ]; then
    fetch_mediamtx
fi
version=$($lib/mediamtx --version)
[ "$(printf '%s\n' v1.20 "$version" | sort -V | head -n 1)" = v1.20 ] || fail 69 "MediaMTX $version is too old: 1.20 or newer"
if [ "$source" != $lib ]; then
    # What runs in later years, wherever this came from.
    (cd "$source" && cp setup.sh install.sh bridge.toml mediamtx.yml $lib/ && cp -r mosquitto systemd $lib/)
    [ ! -e "$source/../bridge/systemd/droidrelay-bridge.service" ] ||
        install -m 644 "$source/../bridge/systemd/droidrelay-bridge.service" $lib/
fi

user() { id "$1" >/dev/null 2>&1 || useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$1"; }
user droidrelay-media
user droidrelay-bridge
getent group droidrelay-tls >/dev/null || groupadd --system droidrelay-tls
RUN_BY=systemd BRIDGE=$lib/droidrelay-bridge $lib/setup.sh "$folder" "$@"
echo "$folder" >$lib/folder
write_units
if runs_systemd; then
    start || true
    echo
    health || fail 69 "not all is well; after mending it: sudo $0 --check"
else
    echo "systemd does not run here: the units are in $units, nothing is started"
fi
