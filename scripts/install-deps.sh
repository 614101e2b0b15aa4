#!/bin/bash
# Installs with apt what building and the demo need and this Debian (12 or newer) lacks.
#   scripts/install-deps.sh [tests]     "tests": also what only tests/run.sh needs
# Nothing is touched, and no root asked for, when all of it is there.
set -euo pipefail
. "$(dirname "$0")/env.sh"

wanted=(
    gcc libc6-dev pkgconf git ca-certificates
    libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
    gstreamer1.0-tools gstreamer1.0-libav
    gstreamer1.0-plugins-base gstreamer1.0-plugins-good
    gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly
    mosquitto mosquitto-clients nginx libnginx-mod-rtmp
    curl ffmpeg python3 python3-pip
)
# cargo-web is the current Rust in Debian's security suite; Debian's own is too old.
rust_is_new_enough || wanted+=(cargo-web rustc-web)
if [ "${1:-}" = tests ]; then
    wanted+=(chromium-headless-shell g++ gstreamer1.0-libcamera iproute2 libnginx-mod-stream nftables python3-paho-mqtt valgrind)
    cargo fmt --version >/dev/null 2>&1 || wanted+=(rustfmt-web)
    cargo clippy --version >/dev/null 2>&1 || wanted+=(rust-web-clippy)
fi

missing=()
for package in "${wanted[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [[ $status == ?i* ]] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null || {
    echo "missing: ${missing[*]}; this script knows only apt, install them by hand" >&2
    exit 1
}
as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || {
        echo "missing: ${missing[*]}; run $0 as root, or install sudo" >&2
        exit 1
    }
    as_root=(sudo)
fi
echo "installing: ${missing[*]}" >&2

# The demo and the tests start servers of their own on free ports. What apt installs here must
# not open ports 80 and 1883 as a service besides, neither now nor at the next boot.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap '"${as_root[@]}" rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
    "${as_root[@]}" chmod 755 $policy
fi
"${as_root[@]}" apt-get -q update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y --no-install-recommends install "${missing[@]}"
if command -v systemctl >/dev/null; then
    for service in mosquitto nginx; do
        [[ " ${missing[*]} " != *" $service "* ]] || "${as_root[@]}" systemctl -q disable $service
    done
fi

rust_is_new_enough || {
    echo "cargo $RUST_MINIMUM or newer is needed; install one with rustup" >&2
    exit 1
}
