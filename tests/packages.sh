#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Do the Debian packages install, run and go away again?
#   tests/packages.sh                     only looks at quickly built packages of this machine
#   tests/packages.sh FOLDER [ROOT]...    makes all packages in a fresh Debian 12 and tries them in
#                                         fresh roots: bookworm-amd64, trixie-amd64,
#                                         bookworm-arm64, trixie-arm64; default: in all of them
# The second form needs root and an amd64 Debian. FOLDER keeps fresh roots and what cargo has made,
# for the next time. The mirrors are those of this machine's apt.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/env.sh"
. "$root/scripts/roots.sh"
target=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
debs=$target/debian
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() {
    echo "packages: $*" >&2
    exit 1
}

# --- looking at them ---------------------------------------------------------------------------

deb() { echo "$debs/$1_${version}_$2.deb"; }
# Reads what is expected on standard input.
expect() {
    diff -u --label "$1: expected" --label "$1: found" - <(printf '%s\n' "$2") || fail "$1"
}
# As on Debian 12; 13 calls a library otherwise, and has its units in /usr.
depends() {
    dpkg-deb --field "$(deb "$1" "$2")" Depends | sed 's/ ([^)]*)//g; s/t64\b//g; s/, /\n/g' | sort
}
# Mode and name of what a package installs, without the lines of the kit and of the pipelines.
contents() {
    dpkg-deb --contents "$(deb "$1" "$2")" | awk '{ print $1, $6 }' | sed 's, \./lib/, ./usr/lib/,' |
        grep -v '/$' | grep -v '/droidrelay/\(mediamtx\|pipelines\)/\|/lintian/' | sort -k 2
}

look() {
    local arch=$1 triplet package
    triplet=$(cpu_of "$arch")-linux-gnu
    for package in gstreamer1.0-droidrelay droidrelay droidrelay-bridge; do
        [ -s "$(deb $package "$arch")" ] ||
            fail "no $(deb $package "$arch"): do Cargo.toml, meson.build and debian/changelog tell one version?"
    done

    expect "files of gstreamer1.0-droidrelay" "$(contents gstreamer1.0-droidrelay "$arch")" <<TEXT
-rw-r--r-- ./usr/lib/$triplet/gstreamer-1.0/libgstdroidrelay.so
-rw-r--r-- ./usr/share/doc/gstreamer1.0-droidrelay/changelog.gz
-rw-r--r-- ./usr/share/doc/gstreamer1.0-droidrelay/copyright
TEXT
    expect "files of droidrelay" "$(contents droidrelay "$arch")" <<TEXT
-rwxr-xr-x ./usr/bin/droidrelay
-rwxr-xr-x ./usr/lib/droidrelay/droidrelay-enroll
-rw-r--r-- ./usr/lib/systemd/system/droidrelay@.service
-rw-r--r-- ./usr/lib/sysusers.d/droidrelay.conf
-rw-r--r-- ./usr/lib/udev/rules.d/60-droidrelay.rules
-rw-r--r-- ./usr/share/bash-completion/completions/droidrelay.bash
-rw-r--r-- ./usr/share/doc/droidrelay/changelog.gz
-rw-r--r-- ./usr/share/doc/droidrelay/copyright
-rw-r--r-- ./usr/share/fish/vendor_completions.d/droidrelay.fish
-rw-r--r-- ./usr/share/man/man1/droidrelay.1.gz
-rw-r--r-- ./usr/share/zsh/vendor-completions/_droidrelay
TEXT
    expect "files of droidrelay-bridge" "$(contents droidrelay-bridge "$arch")" <<TEXT
-rw-r--r-- ./etc/droidrelay-bridge/droidrelay-bridge.toml
-rwxr-xr-x ./usr/bin/droidrelay-bridge
-rw-r--r-- ./usr/lib/systemd/system/droidrelay-bridge.service
-rw-r--r-- ./usr/lib/sysusers.d/droidrelay-bridge.conf
-rw-r--r-- ./usr/share/doc/droidrelay-bridge/changelog.gz
-rw-r--r-- ./usr/share/doc/droidrelay-bridge/copyright
TEXT
    # Nothing but what is linked (dpkg-shlibdeps), loaded (h264parse) or called at installation.
    expect "Depends of gstreamer1.0-droidrelay" "$(depends gstreamer1.0-droidrelay "$arch")" <<TEXT
gstreamer1.0-plugins-bad
libc6
libgcc-s1
libglib2.0-0
libgstreamer1.0-0
TEXT
    expect "Depends of droidrelay" "$(depends droidrelay "$arch")" <<TEXT
gstreamer1.0-droidrelay
libc6
libgcc-s1
libglib2.0-0
libgstreamer1.0-0
procps
systemd | systemd-standalone-sysusers | systemd-sysusers
TEXT
    expect "Depends of droidrelay-bridge" "$(depends droidrelay-bridge "$arch")" <<TEXT
libc6
libgcc-s1
procps
systemd | systemd-standalone-sysusers | systemd-sysusers
TEXT
    local pipelines
    pipelines=$(dpkg-deb --contents "$(deb droidrelay "$arch")" | sed -n 's,.*/pipelines/\(.\+\.launch\)$,\1,p' | sort)
    expect "pipelines of droidrelay" "$pipelines" < <(cd "$root/pipelines" && ls -- *.launch | sort)
    dpkg-deb --info "$(deb droidrelay-bridge "$arch")" conffiles | grep -qx /etc/droidrelay-bridge/droidrelay-bridge.toml ||
        fail "the bridge's configuration is no conffile"
}

sizes() {
    local file
    echo "| package | installed | .deb |"
    echo "|---|---|---|"
    for file in "$debs"/*.deb; do
        echo "| $(basename "$file" .deb) | $(dpkg-deb --field "$file" Installed-Size) KiB | $(($(stat -c %s "$file") / 1024)) KiB |"
    done
}

# The units that are in the packages, as systemd reads them.
units() {
    local unit
    for unit in "$scratch"/*.service; do rm -f "$unit"; done
    sed "s,/usr/bin/droid,$1/droid," "$root/launcher/systemd/droidrelay@.service" >"$scratch/droidrelay@.service"
    sed "s,/usr/bin/droid,$1/droid," "$root/bridge/systemd/droidrelay-bridge.service" >"$scratch/droidrelay-bridge.service"
    for unit in "$scratch"/*.service; do
        systemd-analyze verify --man=no "$unit" || fail "systemd-analyze verify $(basename "$unit")"
        # In tenths.
        systemd-analyze security --offline=true --threshold=20 --no-pager "$unit" >"$scratch/rating" ||
            fail "$(basename "$unit"): $(tail -n 1 "$scratch/rating")"
        tail -n 1 "$scratch/rating"
    done
}

if [ $# = 0 ]; then
    "$root/scripts/install-deps.sh" tests
    rust_is_new_enough
    # Without optimisation, which changes no name and no dependency: most of it is built already.
    debs=$target/debian/quick
    if ! DEB_BUILD_OPTIONS=noopt "$root/scripts/packages.sh" >"$scratch/log" 2>&1; then
        cat "$scratch/log" >&2
        fail "they cannot be built"
    fi
    look "$(dpkg --print-architecture)"
    # A program's manual is its --help, the bridge's its commented configuration.
    lintian --allow-root --fail-on error,warning --suppress-tags no-manual-page "$debs"/*.deb ||
        fail "lintian"
    units "$target/debug"
    exit 0
fi

# --- trying them in fresh roots ----------------------------------------------------------------

folder=$(realpath -m "$1")
shift
[ $# -gt 0 ] || set -- bookworm-amd64 trixie-amd64 bookworm-arm64 trixie-arm64
[ "$(id -u)" = 0 ] || fail "debootstrap and chroot need root"
mkdir -p "$folder"

"$root/scripts/install-deps.sh" release
[[ " $* " != *arm64* ]] || emulate_arm64

# All packages, and the demo's program with them, in a fresh Debian 12.
build() {
    local builder=$folder/builder kept
    echo "== building in a fresh Debian 12"
    # What cargo has made goes from the last root to this one.
    rm -rf "$folder/kept" && mkdir -p "$folder/kept"
    for kept in root/.cargo src/target; do
        [ ! -d "$builder/$kept" ] || mv "$builder/$kept" "$folder/kept/"
    done
    fresh builder bookworm-amd64
    mkdir "$builder/src"
    [ ! -d "$folder/kept/target" ] || mv "$folder/kept/target" "$builder/src/"
    [ ! -d "$folder/kept/.cargo" ] || mv "$folder/kept/.cargo" "$builder/root/"
    # New to cargo: what changed here while it built the last time would pass for built.
    (cd "$root" && git ls-files -z -co --exclude-standard -- ':!fuzz' | xargs -0 ls -d 2>/dev/null |
        tar --create --files-from=-) | tar --extract --touch -C "$builder/src"
    within builder bash -ec '
        cd /src
        scripts/packages.sh amd64 arm64
        cargo build -q --release --locked -p droidrelay-demo
        # The same from meson alone, into a prefix.
        export CARGO_TARGET_DIR=/src/target
        meson setup /meson --prefix=/opt/droidrelay
        meson install -C /meson --quiet
        apt-get -q -y --no-install-recommends install gstreamer1.0-tools gstreamer1.0-plugins-bad
        export GST_PLUGIN_PATH=/opt/droidrelay/lib/x86_64-linux-gnu/gstreamer-1.0
        gst-inspect-1.0 mqttvalve >/dev/null
        gst-inspect-1.0 rtmpauthsink >/dev/null
        grep -q ^ExecStart=/opt/droidrelay/bin/droidrelay "/opt/droidrelay/lib/systemd/system/droidrelay@.service"
        /opt/droidrelay/bin/droidrelay --version
        /opt/droidrelay/bin/droidrelay-bridge --version
    ' >"$folder/build.log" 2>&1 || fail "building, see the end of $folder/build.log"
    debs=$builder/src/target/debian
    look amd64
    look arm64
    sizes
}

# What is expected of a root with the packages; runs in it.
installed='
    set -ex
    [ "$(dpkg-query -W -f "\${db:Status-Abbrev}" gstreamer1.0-droidrelay droidrelay droidrelay-bridge)" = "ii ii ii " ]
    [ -z "${GST_PLUGIN_PATH:-}" ]
    gst-inspect-1.0 mqttvalve | grep -q "Filename .*/gstreamer-1.0/libgstdroidrelay.so"
    gst-inspect-1.0 rtmpauthsink >/dev/null
    droidrelay --version
    echo unused >/tmp/password
    export MQTT_PASSWORD_FILE=/tmp/password RTMP_PASSWORD_FILE=/tmp/password
    droidrelay check /usr/share/droidrelay/pipelines/test-picture.launch
    [ "$(stat -c "%a %U %G" /etc/droidrelay)" = "750 root droidrelay" ]
    [ "$(stat -c "%a %U %G" /etc/droidrelay-bridge)" = "750 root droidrelay-bridge" ]
    [ "$(stat -c "%a %U %G" /etc/droidrelay-bridge/droidrelay-bridge.toml)" = "640 root droidrelay-bridge" ]
    setpriv --reuid=droidrelay-bridge --regid=droidrelay-bridge --clear-groups droidrelay-bridge --check
    systemd-analyze verify --man=no droidrelay@x.service droidrelay-bridge.service
'

# One valve from start to stop by a real broker, with a recording as its proof; runs in a root.
valve='
    set -ex
    port=$1
    mosquitto -p "$port" &
    # What subscribes may stay: it ends with this script.
    until_state() {
        timeout 120 grep -q -m 1 "\"state\":\"$1\"" < <(exec mosquitto_sub -h 127.0.0.1 -p "$port" -t robot/stream/state)
    }
    gst-launch-1.0 -q videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=10/1 ! \
        mqttvalve broker=mqtt://127.0.0.1:"$port" topic=robot/stream standby=cold ! queue ! \
        x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! h264parse ! mpegtsmux ! \
        filesink location=/tmp/recording.ts async=false &
    line=$!
    # The broker answers a little later than it starts.
    for second in $(seq 60); do
        ! mosquitto_pub -h 127.0.0.1 -p "$port" -t here -n || break
        sleep 1
    done
    until_state idle
    [ ! -s /tmp/recording.ts ]
    mosquitto_pub -h 127.0.0.1 -p "$port" -q 1 -t robot/stream -m start
    until_state live
    for second in $(seq 120); do
        [ "$(stat -c %s /tmp/recording.ts)" -lt 10000 ] || break
        sleep 1
    done
    [ "$(stat -c %s /tmp/recording.ts)" -ge 10000 ]
    mosquitto_pub -h 127.0.0.1 -p "$port" -q 1 -t robot/stream -m stop
    until_state idle
    kill -INT $line
    wait $line
'

# The services under a systemd of their own; runs in it.
service='
    set -ex
    cp /usr/share/droidrelay/pipelines/test-picture.launch /etc/droidrelay/front.launch
    printf "BROKER=mqtt://127.0.0.1\nLOCATION=rtmp://127.0.0.1:1/live/stream\n" >/etc/droidrelay/front.env
    (umask 077 && echo unused >/etc/droidrelay/mqtt.pass && echo unused >/etc/droidrelay/rtmp.pass)
    ask() { systemctl show -P "$1" "$2"; }
    robot() { ask MainPID droidrelay@front; }
    # Until another process than $1 is ready.
    anew() {
        for second in $(seq 120); do
            [ "$(robot)" = "$1" ] || [ "$(ask ActiveState droidrelay@front)" != active ] || return 0
            sleep 1
        done
        return 1
    }
    systemctl enable --now droidrelay@front
    systemctl is-active droidrelay@front droidrelay-bridge mosquitto
    [ "$(stat -c %U /proc/"$(robot)")" = droidrelay ]
    grep "^CapBnd:.*0000000000000000$" /proc/"$(robot)"/status
    # The passwords are root'"'"'s, and the valve has logged in with its copy.
    timeout 60 grep -q -m 1 online < <(exec mosquitto_sub -h 127.0.0.1 -t robot/stream/availability)
    systemctl reload droidrelay@front droidrelay-bridge
    systemctl is-active droidrelay@front
    # Hung, killed: another one. A wrong file: none.
    hung=$(robot); kill -STOP "$hung"; anew "$hung"
    killed=$(robot); kill -KILL "$killed"; anew "$killed"
    [ "$(ask NRestarts droidrelay@front)" = 2 ]
    echo "no-such-element" >/etc/droidrelay/wrong.launch
    ! systemctl start droidrelay@wrong
    sleep 4
    [ "$(ask ExecMainStatus droidrelay@wrong) $(ask NRestarts droidrelay@wrong)" = "65 0" ]
    kill -STOP "$(ask MainPID droidrelay-bridge)"
    for second in $(seq 60); do [ "$(ask NRestarts droidrelay-bridge)" = 0 ] || break; sleep 1; done
    [ "$(ask NRestarts droidrelay-bridge)" = 1 ]
    systemctl stop droidrelay@front
    [ "$(ask Result droidrelay@front) $(ask ExecMainStatus droidrelay@front)" = "success 0" ]
    systemctl start droidrelay@front
    apt-get -q -y purge gstreamer1.0-droidrelay droidrelay droidrelay-bridge
    touch /passed
'

# What is left of the packages, in a root; nothing is expected.
left='
    find / -xdev -name "*droidrelay*" -not -path "/proc/*" -not -path "/packages/*" -not -path "/demo/*"
    grep -H droidrelay /etc/passwd /etc/group /etc/shadow /etc/gshadow
    dpkg-query -W -f "\${Package} \${db:Status-Abbrev}\n" "*droidrelay*" 2>/dev/null | grep -v " un"
    true
'

# What has to go well in a root; its last step removes the packages again.
steps() {
    local name=$1 arch=${1#*-} at=$folder/$1
    # What apt installs where recommended packages are not wanted, and then the elements of the lines.
    within "$name" sh -c 'apt-get -q -y --no-install-recommends install /packages/*.deb'
    within "$name" apt-get -q -y --no-install-recommends install gstreamer1.0-tools \
        gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly \
        mosquitto mosquitto-clients
    within "$name" sh -c "$installed"
    if [ "$arch" = amd64 ]; then
        within "$name" apt-get -q -y --no-install-recommends install \
            nginx libnginx-mod-rtmp ffmpeg gstreamer1.0-libav
        # The demo takes what stands beside it: here, what the packages installed.
        mkdir "$at/demo"
        cp "$folder/builder/src/target/release/demo" "$at/demo"
        ln -s /usr/lib/x86_64-linux-gnu/gstreamer-1.0/libgstdroidrelay.so \
            /usr/bin/droidrelay /usr/bin/droidrelay-bridge "$at/demo"
        within "$name" /demo/demo --once
    fi
    within "$name" bash -c "$valve" valve "$(free_port)"
    if [ "$arch" = amd64 ]; then
        within "$name" apt-get -q -y --no-install-recommends install systemd-sysv
        booted "$name" "$service"
    else
        within "$name" apt-get -q -y purge gstreamer1.0-droidrelay droidrelay droidrelay-bridge
    fi
}

try() {
    local name=$1 arch=${1#*-} at=$folder/$1
    echo "== $name"
    fresh "$name" "$name"
    mkdir "$at/packages"
    cp "$debs"/*_"$arch".deb "$at/packages"
    # In the background, as bash goes on after an error in what stands before "||".
    steps "$name" >"$at.log" 2>&1 &
    wait $! || fail "$name, see the end of $at.log"
    grep -h '^start to publishing' "$at.log" || true
    expect "left after purge" "$(within "$name" sh -c "$left")" <<<""
    echo "$name: installed, ran, purged"
    rm -rf "$at"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

build
for name; do try "$name"; done
