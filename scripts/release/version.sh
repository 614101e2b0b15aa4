#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Prints the version, which Cargo.toml, meson.build, debian/changelog and CHANGELOG.md must agree
# on, and, given a tag, the tag too; exits 1 where one differs.
#   scripts/release/version.sh [vX.Y.Z]
#   scripts/release/version.sh --changelog     what CHANGELOG.md says of it, without its heading
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# The heading is "## X.Y.Z" or "## [X.Y.Z]", with a date after it or not.
changes=$(awk -v version="$version" '
    /^## / { here = ($2 == version || $2 == "[" version "]"); next }
    here
' CHANGELOG.md | sed '/./,$!d')
failed=0
[ -n "$changes" ] || {
    echo "CHANGELOG.md has no section of $version, or an empty one" >&2
    failed=1
}
if [ "${1:-}" = --changelog ]; then
    printf '%s\n' "$changes"
    exit "$failed"
fi
agrees() {
    [ "$2" = "$version" ] && return
    echo "Cargo.toml says $version, $1 says ${2:-nothing}" >&2
    failed=1
}
agrees meson.build "$(sed -n "s/^project(.*[^_]version: '\([^']*\)'.*/\1/p" meson.build)"
agrees debian/changelog "$(sed -n '1s/.*(\(.*\)).*/\1/p' debian/changelog)"
[ $# = 0 ] || agrees "the tag" "${1#v}"
echo "$version"
exit "$failed"
