#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Does every source file and script begin with its licence, after a "#!" line if there is one? Is the
# oldest Rust that builds Droidrelay (rust-version in Cargo.toml) the one that all files name, and no
# newer one needed by a crate in Cargo.lock?
#   scripts/check-sources.sh [--build]     --build: also builds with that Rust, by rustup
# Without --build, what the standard library has only since is found by clippy (incompatible_msrv).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
rust_is_new_enough
failed=0
fail() {
    echo "$1" >&2
    failed=1
}

# Scripts without an ending are known by their "#!".
git ls-files -z --cached --others --exclude-standard | xargs -0 awk '
    FNR == 1 {
        is_script = /^#!/
        if (!is_script && FILENAME !~ /\.(rs|sh|py|yml)$|Dockerfile$|meson\.build$/) nextfile
        if (is_script) next
    }
    {
        expected = (FILENAME ~ /\.rs$/ ? "//" : "#") " SPDX-License-Identifier: MPL-2.0"
        if ($0 != expected) {
            print FILENAME ": does not begin with \"" expected "\""
            failed = 1
        }
        nextfile
    }
    END { exit failed }
' >&2 || failed=1

# What is written beside Cargo.toml, as nothing reads it from there: Debian's packages, documents.
named=$(git grep -noE 'cargo[^,|]*\(>= [0-9.]+\)|libstd-rust[^,|]*\(>= [0-9.]+\)|Rust [0-9]+\.[0-9]+' -- \
    debian/control '*.md')
while IFS= read -r line; do
    [[ $line =~ [^0-9.]$RUST_MINIMUM\)?$ ]] || fail "$line: rust-version is $RUST_MINIMUM"
done <<<"$named"

needed() {
    cargo metadata --format-version 1 --locked --filter-platform x86_64-unknown-linux-gnu | python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    print(package["rust_version"] or "0", package["name"], package["version"])'
}
while read -r version name; do
    version_at_least "$version" "$RUST_MINIMUM" || fail "$name needs Rust $version: rust-version is $RUST_MINIMUM"
done < <(needed)

if [ "${1:-}" = --build ]; then
    rustup toolchain install --profile minimal "$RUST_MINIMUM"
    CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/msrv \
        cargo "+$RUST_MINIMUM" check --workspace --all-targets --locked
fi
exit "$failed"
