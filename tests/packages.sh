#!/bin/bash
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
depends() { dpkg-deb --field "$(deb "$1" "$2")" Depends | sed 's/ ([^)]*)//g; s/, /\n/g' | sort; }
# Mode and name of what a package installs, without the lines of the kit and of the pipelines.
contents() {
    dpkg-deb --contents "$(deb "$1" "$2")" | awk '{ print $1, $6 }' |
        grep -v '/$' | grep -v '/droidrelay/\(mediamtx\|pipelines\)/' | sort -k 2
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
-rw-r--r-- ./lib/systemd/system/droidrelay@.service
-rwxr-xr-x ./usr/bin/droidrelay
-rw-r--r-- ./usr/lib/sysusers.d/droidrelay.conf
-rw-r--r-- ./usr/share/doc/droidrelay/changelog.gz
-rw-r--r-- ./usr/share/doc/droidrelay/copyright
TEXT
    expect "files of droidrelay-bridge" "$(contents droidrelay-bridge "$arch")" <<TEXT
-rw-r--r-- ./etc/droidrelay-bridge/droidrelay-bridge.toml
-rw-r--r-- ./lib/systemd/system/droidrelay-bridge.service
-rwxr-xr-x ./usr/bin/droidrelay-bridge
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
systemd | systemd-standalone-sysusers | systemd-sysusers
TEXT
    expect "Depends of droidrelay-bridge" "$(depends droidrelay-bridge "$arch")" <<TEXT
libc6
libgcc-s1
systemd | systemd-standalone-sysusers | systemd-sysusers
TEXT
    local pipelines
    pipelines=$(dpkg-deb --contents "$(deb droidrelay "$arch")" | sed -n 's,.*/pipelines/\(.\+\.launch\)$,\1,p' | sort)
    expect "pipelines of droidrelay" "$pipelines" < <(cd "$root/pipelines" && ls -- *.launch | sort)
    dpkg-deb --info "$(deb droidrelay-bridge "$arch")" conffiles | grep -qx /etc/droidrelay-bridge/droidrelay-bridge.toml ||
        fail "the bridge's configuration is no conffile"
}

sizes() {
    local package file
    echo "| package | installed | .deb |"
    echo "|---|---|---|"
    for file in "$debs"/*_"$1".deb; do
        echo "| $(basename "$file" .deb) | $(dpkg-deb --field "$file" Installed-Size) KiB | $(($(stat -c %s "$file") / 1024)) KiB |"
    done
}
