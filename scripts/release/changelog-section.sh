#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Prints what CHANGELOG.md says of a version, without its heading; exits 1 where it says nothing.
#   scripts/release/changelog-section.sh X.Y.Z
set -euo pipefail
cd "$(dirname "$0")/../.."
# The heading is "## X.Y.Z" or "## [X.Y.Z]", with a date after it or not.
text=$(awk -v version="$1" '
    /^## / { here = ($2 == version || $2 == "[" version "]"); next }
    here
' CHANGELOG.md | sed '/./,$!d')
[ -n "$text" ] || {
    echo "CHANGELOG.md has no section of $1, or an empty one" >&2
    exit 1
}
printf '%s\n' "$text"
