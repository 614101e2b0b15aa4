#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Is the way from nothing to the first picture as the documents say? Types README's blocks as they
# stand there, in fresh Debians that are booted in containers, server and robots apart: a server
# beside a Mosquitto that is somebody's own, a robot by the command that the server prints, a second
# robot with two cameras, one by hand. Their pictures are decoded by RTSPS and on the page in
# Chromium, which knows the server's CA and takes no other: at first, after all were booted again,
# after the certificate was renewed. Then all of it is removed. The same with Docker, where an engine
# is there; and the demo, from a clone.
#   tests/first-use.sh [--write] FOLDER [ROOT]...
# ROOT: bookworm-amd64, trixie-amd64, docker, demo; default: all. FOLDER keeps the roots, and the
# figures, which --write puts into docs/1-start/building.md. Needs root, an amd64 Debian, the
# packages (scripts/packages.sh; made quickly if they are not there) and MediaMTX in PATH or in
# $MEDIAMTX. RESTART_ENGINE restarts the Docker engine; default: systemctl restart docker.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/env.sh"
. "$root/scripts/roots.sh"
fail() {
    echo "first-use: $*" >&2
    exit 1
}
write=
[ "${1:-}" != --write ] || { write=yes && shift; }
[ $# -ge 1 ] || fail "usage: $0 [--write] FOLDER [ROOT]..."
folder=$(realpath -m "$1")
shift
[ $# -gt 0 ] || set -- bookworm-amd64 trixie-amd64 docker demo
[ "$(id -u)" = 0 ] || fail "debootstrap and chroot need root"
mkdir -p "$folder/figures"
"$root/scripts/install-deps.sh" release
mediamtx=$(command -v "${MEDIAMTX:-mediamtx}") || fail "no MediaMTX in PATH or \$MEDIAMTX"
debs=${CARGO_TARGET_DIR:-$root/target}/debian
ls "$debs"/droidrelay-bridge_*_amd64.deb >/dev/null 2>&1 || {
    debs=$debs/quick
    ls "$debs"/droidrelay-bridge_*_amd64.deb >/dev/null 2>&1 || DEB_BUILD_OPTIONS=noopt "$root/scripts/packages.sh"
}


# note STEP COMMANDS TIME: a line of the table of this root.
note() {
    echo "$1: $2 commands, $3"
    echo "| $name | $1 | $2 | $3 |" >>"$folder/figures/$name"
}
now() { date +%s%N; }
since() { echo "$((($(now) - $1) / 1000000)) ms"; }
# typed DOCUMENT WORDS: the lines of the block that has these words, as they stand there.
typed() {
    awk -v words="$2" '
        /^```/ { if (inside && index(block, words)) { printf "%s", block; found = 1; exit } inside = !inside; block = ""; next }
        inside { block = block $0 "\n" }
        END { exit !found }
    ' "$root/$1" || fail "$1 has no block with $2"
}

functions='
    wait_for() { for second in $(seq 60); do ! "$@" >/dev/null 2>&1 || return 0; sleep 0.5; done; echo "never: $*"; return 1; }
    pids() { systemctl show -P MainPID droidrelay-broker droidrelay-media droidrelay-bridge; }
    step() { touch /ready; wait_long test -e /continue; rm /continue; }
    wait_long() { for second in $(seq 600); do ! "$@" || return 0; sleep 1; done; return 1; }
'
# What is typed on the server, and what is expected then; runs in the booted root.
server='
    set -ex
    export SSL_CERT_FILE=/etc/this-machine.crt MEDIAMTX_RELEASES=file:///releases
    kit=/usr/share/droidrelay/mediamtx
    '"$functions"'
    # Somebody has a Mosquitto of their own here, and something on a port that is needed.
    systemctl enable --now mosquitto
    mosquitto -p 8883 &
    busy=$!
    wait_for bash -c "</dev/tcp/127.0.0.1/8883"
    status=0; $kit/install.sh 192.0.2.1 robot1 >/said 2>&1 || status=$?
    cat /said
    [ $status = 69 ] && grep "port 8883 (tcp) is taken by mosquitto (process $busy)" /said
    kill $busy; wait $busy || true

    # A release whose checksum is another one is not taken.
    status=0; MEDIAMTX_RELEASES=file:///wrong $kit/install.sh 192.0.2.1 robot1 >/said 2>&1 || status=$?
    [ $status = 65 ] && grep "does not have the checksum" /said
    begin=$(date +%s%N)
    cd /packages
    status=0; bash -ex /typed >/said 2>&1 || status=$?
    cat /said
    [ $status = 0 ]
    echo "$((($(date +%s%N) - begin) / 1000000)) ms" >/took
    cd /
    grep "^broker *ok" /said; grep "^media *ok" /said; grep "^bridge *ok" /said; grep "^certificate *ok" /said
    ! grep -i "Start the servers" /said
    [ "$(systemctl is-active mosquitto) $(systemctl is-enabled mosquitto)" = "active enabled" ]
    systemctl is-active droidrelay-broker droidrelay-media droidrelay-bridge droidrelay-certificate.timer droidrelay-reload.path
    folder=/srv/droidrelay
    for service in broker:mosquitto media:droidrelay-media bridge:droidrelay-bridge; do
        [ "$(stat -c %U /proc/"$(systemctl show -P MainPID droidrelay-${service%:*})")" = ${service#*:} ]
    done
    ! setpriv --reuid=droidrelay-bridge --regid=droidrelay-bridge --clear-groups cat $folder/ca/ca.key

    # The command for the robot, as it is to be typed there.
    grep -o "sudo droidrelay enroll '"'"'[^'"'"']*'"'"'" /said >/command
    step
    droidrelay-bridge --config $folder/bridge.toml robot add robot2 --camera front --camera rear >/said
    grep -o "sudo droidrelay enroll '"'"'[^'"'"']*'"'"'" /said >/command
    step
    touch /passed
'
# After the next boot.
later='
    set -ex
    kit=/usr/share/droidrelay/mediamtx
    folder=/srv/droidrelay
    '"$functions"'
    wait_for $kit/install.sh --check
    step
    before=$(pids)
    # A robot that is added is let in, without another word.
    droidrelay-bridge --config $folder/bridge.toml robot add robot3
    enter() { mosquitto_pub -h 192.0.2.1 -p 8883 --cafile $folder/tls/ca.crt -u robot3 -P "$(cat $folder/secrets/robots/robot3/mqtt.pass)" -t robots/robot3/stream/state -n; }
    wait_for enter

    # A certificate that is due is renewed, and each server shows it, without a restart.
    serial() { openssl s_client -connect 192.0.2.1:$1 </dev/null 2>/dev/null | openssl x509 -noout -serial; }
    old=$(serial 8883)
    cd $folder
    openssl req -new -key tls/server.key -subj /CN=due | openssl x509 -req -CA tls/ca.crt -CAkey ca/ca.key -set_serial 7 -days 200 \
        -extfile <(echo subjectAltName=IP:192.0.2.1) -out /due.crt
    # Of 1000 days: an older version made such.
    openssl req -new -key tls/server.key -subj /CN=due | openssl x509 -req -CA tls/ca.crt -CAkey ca/ca.key -set_serial 8 -days 1000 \
        -extfile <(echo subjectAltName=IP:192.0.2.1) -out /long.crt
    systemctl start droidrelay-certificate
    [ "$(serial 8883)" = "$old" ]
    cat /long.crt >tls/server.crt
    shows() { for port in 8883 1936 8322 8443; do [ "$(serial $port)" $1 "serial=$2" ] || return 1; done; }
    wait_for shows = 08
    systemctl start droidrelay-certificate
    wait_for shows != 08
    [ "$(pids)" = "$before" ]
    $kit/install.sh --check
    step

    # One that is wrong is named, and the broker goes on with the one it has.
    cp -a tls/server.crt /good.crt
    openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null -subj /CN=other -out tls/server.crt
    wait_for sh -c "journalctl -u droidrelay-broker -o cat | grep \"is not the key of\""
    enter
    ! systemctl reload droidrelay-broker
    ! $kit/install.sh --check
    cat /good.crt >tls/server.crt
    wait_for systemctl reload droidrelay-broker

    # Another name: a wrong one changes nothing, a right one everything.
    status=0; $kit/install.sh 192.0.2.11 || status=$?
    [ $status = 65 ]
    status=0; $kit/install.sh --rename no-such-host.invalid || status=$?
    [ $status = 68 ]
    [ "$(pids)" = "$before" ]
    $kit/install.sh --rename 192.0.2.2 >/said
    cat /said
    grep "^bridge *ok *https://192.0.2.2:8443" /said
    ! grep -r 192.0.2.1 $folder --include=* --exclude-dir=data
    openssl s_client -connect 192.0.2.2:8883 -CAfile $folder/tls/ca.crt -verify_ip 192.0.2.2 -verify_return_error </dev/null

    cd /
    # From somebody'"'"'s home, with everything in it.
    $kit/install.sh --uninstall
    [ "$(systemctl is-active mosquitto) $(systemctl is-enabled mosquitto)" = "active enabled" ]
    mkdir -p /home/me && chmod 700 /home/me
    cp -r $kit /home/me/kit && cp /usr/bin/droidrelay-bridge /releases/mediamtx /home/me/
    apt-get -q -y purge droidrelay-bridge
    export FOLDER=/home/me/server BRIDGE=/home/me/droidrelay-bridge MEDIAMTX=/home/me/mediamtx
    mkdir -p /home/me/bridge/systemd && cp /bridge.service /home/me/bridge/systemd/droidrelay-bridge.service
    /home/me/kit/install.sh 192.0.2.1 robot1
    unset FOLDER BRIDGE MEDIAMTX
    ! grep /home/me/droid /home/me/server/mediamtx.yml
    rm -r /home/me/kit /home/me/droidrelay-bridge /home/me/mediamtx /home/me/bridge
    systemctl restart droidrelay-broker droidrelay-media droidrelay-bridge
    wait_for /usr/local/lib/droidrelay/install.sh --check
    /usr/local/lib/droidrelay/install.sh --uninstall
    systemctl is-active mosquitto
    touch /passed
'
# A robot, set up by what README.md says; then after the next boot.
robot='
    set -ex
    '"$functions"'
    cd /home/pi
    begin=$(date +%s%N)
    status=0; bash -ex /typed >/said 2>&1 || status=$?
    cat /said
    [ $status = 0 ]
    echo "$((($(date +%s%N) - begin) / 1000000)) ms" >/took
    for stream in $(cat /streams); do
        grep -x "$stream: idle, camera off" /said
        [ "$(systemctl is-active droidrelay@$stream) $(systemctl is-enabled droidrelay@$stream)" = "active enabled" ]
    done
    step
    touch /passed
'
robot_later='
    set -ex
    '"$functions"'
    for stream in $(cat /streams); do wait_for systemctl is-active droidrelay@$stream; done
    step
    if [ -e /by-hand ]; then
        droidrelay leave
        ! systemctl is-active droidrelay@robot1
        [ -z "$(ls /etc/droidrelay)" ]
        (cd /home/pi && bash -ex /by-hand)
        step
    fi
    apt-get -q -y purge gstreamer1.0-droidrelay droidrelay
    rm -r /home/pi/*
    touch /passed
'
# What is left of it; nothing is expected.
left='
    find / -xdev -name "*droidrelay*" -not -path "/proc/*" -not -path "/packages/*" -not -path "/var/lib/apt/*" -not -path "/var/log/*"
    grep -H droidrelay /etc/passwd /etc/group /etc/shadow /etc/gshadow
    find /srv /home -mindepth 2
    true
'

# Both machines, each in a network of its own, with a cable between them.
connect() {
    ip netns add "$net-server"
    ip netns add "$net-robot"
    ip -n "$net-server" link add lan type veth peer name lan netns "$net-robot"
    ip -n "$net-server" address add 192.0.2.1/24 dev lan
    ip -n "$net-server" address add 192.0.2.2/24 dev lan
    ip -n "$net-robot" address add 192.0.2.3/24 dev lan
    for side in server robot; do
        ip -n "$net-$side" link set lo up
        ip -n "$net-$side" link set lan up
    done
    # Without one, browsers have no address of their own for WebRTC.
    ip -n "$net-robot" route add default via 192.0.2.1
}
disconnect() {
    ip netns del "$net-server" 2>/dev/null || true
    ip netns del "$net-robot" 2>/dev/null || true
}
lab=${CARGO_TARGET_DIR:-$root/target}/debug/lab
net=first-use-$$
trap disconnect EXIT
# begin MACHINE SCRIPT: boots it, until it waits for somebody to look.
begin() {
    local side=${1%%-*}
    rm -f "$folder/$1/ready" "$folder/$1/continue"
    booted "$1" "$2" "$net-${side%2}" >>"$folder/$1.log" 2>&1 &
    machines[$1]=$!
    ready "$1"
}
ready() {
    local second
    for second in $(seq 400); do
        [ ! -e "$folder/$1/ready" ] || return 0
        kill -0 "${machines[$1]}" 2>/dev/null || break
        sleep 1
    done
    fail "$1 is not ready, see the end of $folder/$1.log"
}
# It goes on, until it waits again.
go_on() {
    rm "$folder/$1/ready"
    touch "$folder/$1/continue"
    ready "$1"
}
# All go on, and end.
end() {
    local machine
    for machine in "${!machines[@]}"; do touch "$folder/$machine/continue"; done
    for machine in "${!machines[@]}"; do wait "${machines[$machine]}" || fail "see the end of $folder/$machine.log"; done
    machines=()
}
# look WHEN ROBOT...: a viewer opens a player: the robot starts, and thirty pictures are decoded; then
# the page, in Chromium.
look() {
    local when=$1 password robot begin said
    shift
    password=$(cat "$folder/$server_at/srv/droidrelay/secrets/owner.pass")
    for robot; do
        begin=$(now)
        timeout 60 ip netns exec "$net-robot" ffmpeg -v error -rtsp_transport tcp \
            -i "rtsps://owner:$password@192.0.2.1:8322/robots/$robot" -frames:v 30 -f null - </dev/null || fail "$robot: no picture"
        note "$when: $robot, 30 pictures decoded by RTSPS" 0 "$(since $begin)"
    done
    said=$(ip netns exec "$net-robot" "$lab" visit https://192.0.2.1:8443/ \
        "$folder/$server_at/srv/droidrelay/tls/ca.crt" "$folder/$server_at/srv/droidrelay/secrets/owner.pass" "$@") || fail "no picture on the page"
    while IFS= read -r line; do
        note "$when: ${line%%:*}, on the page (Chromium, ${line##*by })" 0 "$(sed 's/.*picture \([0-9]* ms\).*/\1/' <<<"$line")"
    done <<<"$said"
}
# enroll MACHINE STREAM...: README's block, with the command that the server has printed.
enroll() {
    local at=$folder/$1 command
    command=$(cat "$folder/$server_at/command")
    # Of the form that README shows; here is no camera.
    [[ $command == "$(grep "droidrelay enroll" <<<"$robot_block" | sed "s/cloud.example/192.0.2.1/; s/#\.\.\..*/#/")"* ]] || fail "README does not show: $command"
    grep -v "droidrelay enroll" <<<"$robot_block" >"$at/typed"
    echo "$command --line test-picture" >>"$at/typed"
    sed -i "$as_typed; s/ gstreamer1.0-libcamera//" "$at/typed"
    echo "${@:2}" >"$at/streams"
    begin "$1" "$robot"
}

# prepare NAME RELEASE PACKAGE...: a fresh root with these packages of Debian; the next time from $folder.
prepare() {
    local kept=$folder/prepared/$1
    if [ ! -d "$kept" ]; then
        fresh "$1" "$2" >"$folder/$1.log"
        within "$1" apt-get -q -y --no-install-recommends install systemd-sysv iproute2 openssl ca-certificates "${@:3}" >>"$folder/$1.log" 2>&1 ||
            fail "see the end of $folder/$1.log"
        mkdir -p "$folder/prepared"
        mv "$folder/$1" "$kept"
    fi
    rm -rf "${folder:?}/$1"
    cp -a "$kept" "$folder/$1"
    : >"$folder/$1.log"
}

# Where there is no Mosquitto: it brings its own, whose service stays off, and takes it away again.
try_bare() {
    local at=$folder/bare
    fresh bare "$1" >"$at.log"
    # Nothing but install.sh keeps a service from starting.
    rm "$at/usr/sbin/policy-rc.d"
    mkdir "$at/packages"
    cp "$debs"/droidrelay-bridge_*_amd64.deb "$at/packages"
    within bare sh -c 'apt-get -q -y --no-install-recommends install /packages/*.deb' >>"$at.log" 2>&1 || fail "see the end of $at.log"
    cp -r "$root/mediamtx" "$at/usr/share/droidrelay/"
    cp "$mediamtx" "$at/mediamtx"
    within bare env MEDIAMTX=/mediamtx /usr/share/droidrelay/mediamtx/install.sh 192.0.2.1 robot1 >>"$at.log" 2>&1 || fail "see the end of $at.log"
    [ -e "$at/usr/sbin/mosquitto" ] && [ ! -e "$at/usr/sbin/policy-rc.d" ] || fail "$1: no Mosquitto, or a policy that stays"
    [ ! -L "$at/etc/systemd/system/multi-user.target.wants/mosquitto.service" ] || fail "$1: mosquitto.service is on"
    within bare /usr/local/lib/droidrelay/install.sh --uninstall >>"$at.log" 2>&1
    [ ! -e "$at/usr/sbin/mosquitto" ] || fail "$1: Mosquitto is left"
    within bare apt-get -q -y purge droidrelay-bridge >>"$at.log" 2>&1
    found=$(within bare sh -c "$left")
    [ -z "$found" ] || fail "left on $1: $found"
    rm -rf "$at"
}

try() {
    local release=$1 server_at=server-$1 robot_at=robot-$1 robot2_at=robot2-$1 at=$folder/server-$1 machine block robot_block
    declare -A machines=()
    echo "== $release"
    (rust_is_new_enough && cd "$root" && cargo build -q --locked --workspace --bin lab)
    try_bare "$release"
    connect
    prepare "$server_at" "$release" mosquitto mosquitto-clients curl
    prepare "$robot_at" "$release" gstreamer1.0-{tools,plugins-base,plugins-good,plugins-bad,plugins-ugly} procps
    mkdir -p "$at/packages" "$at/releases/v1.20.1" "$at/wrong/v1.20.1"
    cp "$debs"/droidrelay-bridge_*_amd64.deb "$at/packages"
    within "$server_at" sh -c 'apt-get -q -y --no-install-recommends install /packages/*.deb' >>"$at.log" 2>&1 || fail "see the end of $at.log"
    # The kit as it is here: the packages may be older.
    cp -r "$root/mediamtx" "$at/usr/share/droidrelay/"
    cp "$root/bridge/systemd/droidrelay-bridge.service" "$at/bridge.service"
    # As a release of MediaMTX lies there: checksums of all archives, and the archives.
    cp "$mediamtx" "$at/releases/mediamtx"
    (
        cd "$at/releases/v1.20.1"
        tar -czf mediamtx_v1.20.1_linux_amd64.tar.gz -C .. mediamtx
        sha256sum mediamtx_v1.20.1_linux_amd64.tar.gz >checksums.sha256
        cp ./* "$at/wrong/v1.20.1"
        echo more >>"$at/wrong/v1.20.1/mediamtx_v1.20.1_linux_amd64.tar.gz"
    )
    # The robots have a test picture for a camera; their network has no way out.
    mkdir -p "$folder/$robot_at/home/pi"
    cp "$debs"/{gstreamer1.0-droidrelay,droidrelay}_*_amd64.deb "$folder/$robot_at/home/pi"
    within "$robot_at" sh -c 'cd /home/pi && apt-get -q -y --no-install-recommends install ./*.deb' >>"$folder/$robot_at.log" 2>&1 ||
        fail "see the end of $folder/$robot_at.log"
    rm -rf "${folder:?}/$robot2_at"
    cp -a "$folder/$robot_at" "$folder/$robot2_at"
    # There is no sudo, and one address is the name.
    local as_typed='s/sudo //g; s/cloud.example/192.0.2.1/g; s/apt update && //'
    block=$(typed README.md install.sh)
    robot_block=$(typed README.md "droidrelay enroll")
    [[ $(sed 's/ *#.*//' <<<"$block") == *"$(typed mediamtx/README.md install.sh)" ]] ||
        fail "README.md and mediamtx/README.md install otherwise"
    sed "$as_typed" <<<"$block" >"$at/typed"
    begin "$server_at" "$server"
    note "server, as README says" "$(wc -l <<<"$block")" "$(cat "$at/took")"

    at=$folder/$robot_at
    enroll "$robot_at" robot1
    note "robot, as README says" "$(wc -l <<<"$robot_block")" "$(cat "$at/took")"
    look "first picture" robot1
    go_on "$server_at"
    enroll "$robot2_at" robot2.front robot2.rear
    note "a second robot, with two cameras" 3 "$(cat "$folder/$robot2_at/took")"
    look "at once" robot2.front robot2.rear
    end

    begin "$server_at" "$later"
    begin "$robot_at" "$robot_later"
    begin "$robot2_at" "$robot_later"
    look "after all were booted again" robot1 robot2.front robot2.rear
    go_on "$server_at"
    look "after the certificate was renewed" robot1 robot2.front
    typed pipelines/README.md droidrelay@front | sed "$as_typed; s/pi5.launch/test-picture.launch/" >"$at/by-hand"
    cp "$folder/$server_at"/srv/droidrelay/{secrets/robots/robot1/*.pass,tls/ca.crt} "$at/home/pi"
    go_on "$robot_at"
    look "the first robot after \`droidrelay leave\`, by hand" robot1
    end
    for machine in "$server_at" "$robot_at" "$robot2_at"; do
        found=$(within "$machine" sh -c "$left")
        [ -z "$found" ] || fail "left on $machine: $found"
        rm -rf "${folder:?}/$machine"
    done
    disconnect
    echo "$release: installed, looked at, booted again, renewed, renamed, removed; nothing is left"
}
try_docker() {
    local at=$folder/docker compose=(docker compose) container first begin server
    echo "== docker"
    docker info >/dev/null 2>&1 || { echo "docker: no engine answers here: not tried"; return; }
    docker compose version >/dev/null 2>&1 || compose=(docker-compose)
    "${compose[@]}" version | sed -n 1p
    # The images that the Dockerfile names, made here; then the server's, as for a release.
    export STORAGE_DRIVER=vfs
    fresh image bookworm-amd64 >/dev/null
    container=$(buildah from scratch)
    buildah add -q "$container" "$folder/image" / >/dev/null
    buildah commit -q "$container" localhost/first-use-debian >/dev/null
    buildah rm "$container" >/dev/null
    container=$(buildah from scratch)
    buildah copy -q "$container" "$mediamtx" /mediamtx >/dev/null
    buildah commit -q "$container" localhost/first-use-mediamtx >/dev/null
    buildah rm "$container" >/dev/null
    DEBIAN_IMAGE=localhost/first-use-debian MEDIAMTX_IMAGE=localhost/first-use-mediamtx \
        "$root/scripts/release/server-image.sh" "$folder" "$debs"/droidrelay-bridge_*_amd64.deb >"$at.log" 2>&1 || fail "see the end of $at.log"
    docker load -q <"$(ls "$folder"/droidrelay-server_*_amd64.tar.gz)"

    rm -rf "$at"
    mkdir "$at"
    cp "$root/mediamtx/compose.yml" "$at/"
    cd "$at"
    typed mediamtx/README.md 'docker compose up' | sed "s/docker compose/${compose[*]}/; s/cloud.example/127.0.0.1/" >typed
    # With a terminal, as somebody who types has one.
    begin=$(now)
    script -qec "bash -ex typed" said >/dev/null </dev/null || { cat said; fail "what was typed"; }
    ids() { "${compose[@]}" ps -q | sort; }
    healthy() { for server in broker media bridge; do [ "$(docker inspect -f '{{.State.Health.Status}}' "$("${compose[@]}" ps -q $server)")" = healthy ] || return 1; done; }
    wait_for healthy
    note "server, $(docker version -f "engine {{.Server.Version}}"), Compose $("${compose[@]}" version --short)" "$(wc -l <typed)" "$(since $begin), until all are healthy"
    enter() { mosquitto_pub -h 127.0.0.1 -p 8883 --cafile config/tls/ca.crt -u robot1 -P "$(cat config/secrets/robots/robot1/mqtt.pass)" -t robots/robot1/stream/state -n 2>/dev/null; }
    wait_for enter
    first=$(ids)
    "${compose[@]}" up -d >>said 2>&1
    [ "$(ids)" = "$first" ] || fail "a second up has made other containers"
    # A signal that somebody has sent does not keep them from running again with the engine.
    for server in broker media bridge renew; do "${compose[@]}" kill -s HUP $server >>said 2>&1; done
    wait_for healthy
    if [ -n "${RESTART_ENGINE:-}" ] || [ -d /run/systemd/system ]; then
        eval "${RESTART_ENGINE:-systemctl restart docker}"
        wait_for healthy
        [ "$(ids)" = "$first" ] || fail "other containers after a restart of the engine"
    else
        echo "docker: no RESTART_ENGINE: the engine is not restarted"
    fi
    ! HOST=127.0.0.9 "${compose[@]}" up -d >>said 2>&1 || fail "another HOST is taken without a word"
    "${compose[@]}" run --rm setup --rename 127.0.0.2 >>said 2>&1 || fail "rename, see $at/said"
    [ "$(cat .env)" = HOST=127.0.0.2 ] || fail ".env: $(cat .env)"
    renamed() { openssl s_client -connect 127.0.0.1:$1 -CAfile config/tls/ca.crt -verify_ip 127.0.0.2 -verify_return_error </dev/null >/dev/null 2>&1; }
    for port in 8883 1936 8322 8443; do wait_for renamed $port; done
    wait_for healthy
    "${compose[@]}" down >>said 2>&1
    cd "$folder"
    rm -rf "$at" "$folder/image"
    echo "docker: started, renamed, removed"
}
# The demo, as README says, in a clone in a Debian that has nothing else.
try_demo() {
    local at=$folder/demo begin before
    echo "== demo"
    fresh demo bookworm-amd64 >/dev/null
    mkdir "$at/clone"
    git -C "$root" archive HEAD | tar -x -C "$at/clone"
    before=$(du -sm "$at" | cut -f1)
    begin=$(now)
    # By itself, to the end.
    typed README.md demo.sh | sed 's/ *#.*/ --once/; 1i cd /clone' >"$at/typed"
    within demo sh -ex /typed >"$at.log" 2>&1 || fail "see the end of $at.log"
    grep -q "60 frames" "$at.log" || fail "no frames, see $at.log"
    note "demo, with all that it installs and builds: $(($(du -sm "$at" | cut -f1) - before)) MB of disk" 1 "$(since $begin)"
    begin=$(now)
    within demo sh -ex /typed >"$at.log" 2>&1 || fail "see the end of $at.log"
    note "demo, the next time: start, 60 pictures, stop" 1 "$(since $begin)"
    rm -rf "$at"
}
wait_for() {
    local second
    for second in $(seq 240); do
        ! "$@" || return 0
        sleep 0.5
    done
    fail "never: $*"
}

for name; do
    rm -f "$folder/figures/$name"
    case $name in
    docker | demo) "try_$name" ;;
    *) try "$name" ;;
    esac
done
[ -n "$write" ] || exit 0
# The table takes the place of the one before.
{
    sed '/^<!-- first-use/q' "$root/docs/1-start/building.md"
    printf '\nOn %s, %s processors; load average %s. What exceeds the test is other work on the machine.\n\n' \
        "$(date +%F)" "$(nproc)" "$(cut -d' ' -f1-3 /proc/loadavg)"
    printf '| where | step | commands | time |\n|---|---|---:|---:|\n'
    cat "$folder"/figures/*
} >"$folder/building.md"
cat "$folder/building.md" >"$root/docs/1-start/building.md"
