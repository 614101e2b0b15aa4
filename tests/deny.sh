#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Asks cargo-deny about advisories, licences, duplicates and origins of all crates (deny.toml says
# what is accepted and why); exits 1 where something is new.
#   tests/deny.sh [CHECK]...     advisories, bans, licenses, sources; all of them by default
# Fetches RustSec's advisory database from GitHub; where that is out of reach, say
# `tests/deny.sh bans licenses sources`.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/env.sh"
rust_is_new_enough
cd "$root"
if ! cargo deny --version >/dev/null 2>&1; then
    cargo install --locked --quiet cargo-deny
fi
exec cargo deny --locked check "$@"
