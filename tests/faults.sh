#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Breaks each part of the running system in turn and looks whether it mends itself: PASS or FAIL
# with the time to recover; exits 1 where one of ours fails. Some 45 minutes; as root all of it
# (networks of its own).
#   tests/faults.sh [--short] [--write docs/5-reports] [--only TEXT] [OPTION]...     --help names all
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/install-deps.sh" tests
. "$root/scripts/env.sh"
rust_is_new_enough
cargo build --manifest-path "$root/Cargo.toml" --workspace --locked -q
exec "${CARGO_TARGET_DIR:-$root/target}/debug/lab" faults "$@"
