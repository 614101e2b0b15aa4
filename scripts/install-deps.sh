#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Installs with apt what building and the demo need and this Debian (12 or newer) lacks.
#   scripts/install-deps.sh [tests]     "tests": also what only tests/run.sh needs
#   scripts/install-deps.sh packages [ARCH]     only what scripts/packages.sh needs
#   scripts/install-deps.sh cluster     also what only building a broker in tests/brokers.sh --cluster needs
#   scripts/install-deps.sh machines    only what lab/vm.sh needs
#   scripts/install-deps.sh release     only what scripts/release and fresh roots of Debian need
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
if [ "${1:-}" = packages ]; then
    wanted=(gcc libc6-dev pkgconf git ca-certificates libgstreamer1.0-dev debhelper meson)
fi
if [ "${1:-}" = cluster ]; then
    wanted+=(cmake g++ libssl-dev make perl protobuf-compiler)
fi
needs_rust() { [[ " release machines " != *" ${1:-} "* ]] && ! rust_is_new_enough; }
if [ "${1:-}" = release ]; then
    wanted=(apt-utils binfmt-support buildah chromium-headless-shell debootstrap gpg gpg-agent libnss3-tools qemu-user-static systemd-container)
fi
if [ "${1:-}" = machines ]; then
    wanted=(debootstrap e2fsprogs openssh-client python3 qemu-system-x86 qemu-utils)
fi
# cargo-web is the current Rust in Debian's security suite; Debian's own is too old.
! needs_rust "$@" || wanted+=(cargo-web rustc-web)
if [ "${1:-}" = tests ]; then
    wanted+=(certbot chromium-headless-shell g++ iproute2 libnginx-mod-stream nftables python3-paho-mqtt valgrind)
    # For pipelines/ and examples/.
    wanted+=(gir1.2-gstreamer-1.0 gstreamer1.0-alsa gstreamer1.0-libcamera gstreamer1.0-opencv python3-gi)
    cargo fmt --version >/dev/null 2>&1 || wanted+=(rustfmt-web)
    cargo clippy --version >/dev/null 2>&1 || wanted+=(rust-web-clippy)
    # For tests/packages.sh.
    wanted+=(debhelper lintian meson procps systemd)
fi
foreign=${2:-}
[ "$foreign" != "$(dpkg --print-architecture 2>/dev/null)" ] || foreign=
if [ -n "$foreign" ]; then
    cpu=$(cpu_of "$foreign")
    # The C++ compiler is for meson, which looks for it.
    wanted+=("gcc-${cpu/_/-}-linux-gnu" "g++-${cpu/_/-}-linux-gnu"
        "libc6-dev:$foreign" "libgstreamer1.0-dev:$foreign")
    # A rustup may have the other architecture's library too.
    rust_builds_for "$cpu" || wanted+=(cargo-web rustc-web "libstd-rust-web-dev:$foreign")
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
[ -z "$foreign" ] || "${as_root[@]}" dpkg --add-architecture "$foreign"
"${as_root[@]}" apt-get -q update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y --no-install-recommends install "${missing[@]}"
if command -v systemctl >/dev/null; then
    for service in mosquitto nginx; do
        [[ " ${missing[*]} " != *" $service "* ]] || "${as_root[@]}" systemctl -q disable $service
    done
fi

! needs_rust "$@" || {
    echo "cargo $RUST_MINIMUM or newer is needed; install one with rustup" >&2
    exit 1
}
