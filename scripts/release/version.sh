#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Prints the version, which Cargo.toml, meson.build, debian/changelog and CHANGELOG.md must agree
# on, and, given a tag, the tag too; exits 1 where one differs.
#   scripts/release/version.sh [vX.Y.Z]
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
failed=0
agrees() {
    [ "$2" = "$version" ] && return
    echo "Cargo.toml says $version, $1 says ${2:-nothing}" >&2
    failed=1
}
agrees meson.build "$(sed -n "s/^project(.*[^_]version: '\([^']*\)'.*/\1/p" meson.build)"
agrees debian/changelog "$(sed -n '1s/.*(\(.*\)).*/\1/p' debian/changelog)"
[ $# = 0 ] || agrees "the tag" "${1#v}"
scripts/release/changelog-section.sh "$version" >/dev/null || failed=1
echo "$version"
exit "$failed"
