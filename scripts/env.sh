# Sourced by the scripts: the tools that they need, found on a plain user's PATH too.
RUST_MINIMUM=1.92

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
