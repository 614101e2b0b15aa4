#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Runs one of the three servers in a container as its own user, and has it take what changes.
#   serve.sh broker|media|bridge
#   serve.sh healthy broker|media|bridge      for the container's health
# As the units do on a plain Debian: users, robots and certificates by SIGHUP, once they have been
# found right; another name by a new start, which the container's restart policy gives.
set -euo pipefail
folder=/srv/droidrelay
here=$(cd "$(dirname "$0")" && pwd)
listens() {
    local line
    printf -v line ' [0-9A-F]*:%04X [0-9A-F]*:0000 0A ' "$1"
    grep -qE "$line" /proc/net/tcp /proc/net/tcp6
}
if [ "$1" = healthy ]; then
    case $2 in
    broker) listens 8883 ;;
    media) listens 1936 && listens 8322 ;;
    bridge)
        exec 3<>/dev/tcp/127.0.0.1/8080
        printf 'GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
        read -r -t 5 -u 3 _ code _ && [ "$code" = 200 ]
        ;;
    esac
    exit
fi
case $1 in
broker) user=mosquitto reload='passwd acl tls/server.crt tls/server.key' restart=mosquitto.conf server=(mosquitto -c $folder/mosquitto.conf) ;;
# It looks for itself.
media) user=droidrelay-media reload='' restart='' server=(mediamtx $folder/mediamtx.yml) ;;
bridge) user=droidrelay-bridge reload=bridge.toml restart=server.conf server=(droidrelay-bridge --config $folder/bridge.toml) ;;
*) exit 64 ;;
esac
state() { [ -z "$1" ] || (cd $folder && stat -c '%i %y' $1 2>/dev/null || true); }
reloads=$(state "$reload") restarts=$(state "$restart")
setpriv --reuid=$user --regid=$user --groups="$(id -g $user),$(getent group droidrelay-tls | cut -d: -f3)" \
    --no-new-privs --inh-caps=-all "${server[@]}" &
child=$!
trap 'kill -TERM $child' TERM INT
# By hand it asks for the same. It must end nothing: what a signal ends counts as stopped by hand, and
# stays down after the next start of the engine.
trap 'reloads=' HUP
while kill -0 $child 2>/dev/null; do
    sleep 2 &
    wait $! || true
    [ "$(state "$restart")" = "$restarts" ] || kill -TERM $child
    now=$(state "$reload")
    if [ "$now" != "$reloads" ]; then
        reloads=$now
        ! "$here/setup.sh" $folder --check || kill -HUP $child
    fi
done
wait $child
