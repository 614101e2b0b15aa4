#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Makes this Debian the server: Mosquitto, MediaMTX and droidrelay-bridge as systemd services.
#   sudo mediamtx/install.sh HOST [ROBOT...]
# HOST: the name or address at which robots and viewers reach it. Needed before: the package
# droidrelay-bridge (or BRIDGE=FILE), and MediaMTX 1.20 or newer from its releases as
# /usr/local/bin/mediamtx (or MEDIAMTX=FILE). All of it lies in /srv/droidrelay (or FOLDER=...).
# Run again, it brings configurations and units up to date and keeps users, robots, passwords.
set -euo pipefail
source=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '3,8s/^# //p' "$0" >&2; exit 64; }
[ "$(id -u)" = 0 ] || { echo "run it as root: sudo $0 $*" >&2; exit 77; }
folder=${FOLDER:-/srv/droidrelay}
units=${UNITS:-/etc/systemd/system}
find_program() {
    realpath "$(command -v "$1")" 2>/dev/null || { echo "$1 is missing: $2" >&2; return 1; }
}
BRIDGE=$(find_program "${BRIDGE:-droidrelay-bridge}" "install the package droidrelay-bridge, or give BRIDGE=FILE") || exit 69
mediamtx=$(find_program "${MEDIAMTX:-mediamtx}" "put the program of its release into /usr/local/bin, or give MEDIAMTX=FILE") || exit 69
export BRIDGE

if ! command -v mosquitto_passwd >/dev/null || ! command -v openssl >/dev/null; then
    apt-get -q update
    DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install mosquitto openssl
fi
user() { id "$1" >/dev/null 2>&1 || useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$1"; }
user droidrelay-media
user droidrelay-bridge
getent group droidrelay-tls >/dev/null || groupadd --system droidrelay-tls

mkdir -p "$folder"
"$source/setup.sh" "$folder" "$@"

mkdir -p "$units/droidrelay-bridge.service.d"
fill() {
    sed -e "s|%FOLDER%|$folder|g; s|%BRIDGE%|$BRIDGE|g; s|%MEDIAMTX%|$mediamtx|g" "$source/systemd/$1" >"$units/$2"
    chmod 644 "$units/$2"
}
fill droidrelay-broker.service droidrelay-broker.service
fill droidrelay-media.service droidrelay-media.service
fill droidrelay-bridge.conf droidrelay-bridge.service.d/server.conf
chmod 755 "$units/droidrelay-bridge.service.d"
# The unit of the package, where the bridge came without it.
if [ ! -e /usr/lib/systemd/system/droidrelay-bridge.service ] && [ ! -e /lib/systemd/system/droidrelay-bridge.service ]; then
    install -m 644 "$source/../bridge/systemd/droidrelay-bridge.service" "$units/droidrelay-bridge.service"
fi

if [ -d /run/systemd/system ]; then
    # Debian's own service would take port 1883.
    systemctl disable --now mosquitto.service 2>/dev/null || true
    systemctl daemon-reload
    systemctl enable droidrelay-broker droidrelay-media droidrelay-bridge
    systemctl restart droidrelay-broker droidrelay-media droidrelay-bridge
else
    echo "systemd does not run here: the units are in $units, nothing is started"
fi
