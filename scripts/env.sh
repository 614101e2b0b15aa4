# SPDX-License-Identifier: MPL-2.0
# shellcheck shell=bash
# Sourced by the scripts: the tools that they need, found on a plain user's PATH too.
RUST_MINIMUM=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "${BASH_SOURCE[0]}")/../Cargo.toml")

# Debian keeps servers out of a plain user's PATH.
PATH=$PATH:/usr/sbin:/sbin

version_at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# True with a cargo that builds this project first in PATH; Debian's goes first where the one
# found there (an old rustup) is too old.
rust_is_new_enough() {
    local directory version
    for directory in "" /usr/bin; do
        version=$(PATH=$directory${directory:+:}$PATH cargo --version 2>/dev/null | cut -d' ' -f2)
        if [ -n "$version" ] && version_at_least $RUST_MINIMUM "$version"; then
            PATH=$directory${directory:+:}$PATH
            return 0
        fi
    done
    return 1
}

# Rust's and GNU's name of a Debian architecture's processor.
cpu_of() {
    case $1 in
    amd64) echo x86_64 ;;
    arm64) echo aarch64 ;;
    *) echo "architecture $1: amd64 and arm64 are known" >&2 && return 1 ;;
    esac
}

# True when the rustc first in PATH has the standard library for this processor.
rust_builds_for() { [ -d "$(rustc --print target-libdir --target "$1-unknown-linux-gnu" 2>/dev/null)" ]; }

# Lets this machine run arm64 programs, also in a chroot or a container; needs root, and what
# install-deps.sh release installs.
emulate_arm64() {
    [ "$(dpkg --print-architecture)" != arm64 ] || return 0
    mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64
}
