#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Does every source file and script begin with its licence, after a "#!" line if there is one?
#   scripts/check-spdx.sh
set -euo pipefail
cd "$(dirname "$0")/.."
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
' >&2
