#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Makes the Debian packages gstreamer1.0-droidrelay, droidrelay and droidrelay-bridge.
#   scripts/packages.sh [ARCH]...     amd64, arm64; default: this machine's
# They lie in target/debian then, and install on this Debian and later ones: made on Debian 12,
# they are for 12 and 13. For another architecture they are cross-built with Debian's packages.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/env.sh"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
export DEBS=$CARGO_TARGET_DIR/debian
# What is not optimised is for tests/packages.sh only.
[[ " ${DEB_BUILD_OPTIONS:-} " != *" noopt "* ]] || DEBS+=/quick
# debhelper gives what it runs a HOME of its own.
export CARGO_HOME=${CARGO_HOME:-$HOME/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
[ $# -gt 0 ] || set -- "$(dpkg --print-architecture)"
for arch; do cpu_of "$arch" >/dev/null; done

cd "$root"
mkdir -p "$DEBS"
for arch; do
    scripts/install-deps.sh packages "$arch"
    (
        rust_is_new_enough
        # Debian's Rust where the one found (a rustup) cannot build for the other architecture.
        rust_builds_for "$(cpu_of "$arch")" || PATH=/usr/bin:$PATH
        trap 'debian/rules clean >/dev/null' EXIT
        rm -f "$DEBS"/*_"$arch".deb
        dpkg-architecture -a"$arch" -c debian/rules clean binary
    )
done
ls -l "$DEBS"/*.deb
