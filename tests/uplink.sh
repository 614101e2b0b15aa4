#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Shows what a weak uplink does to a stream, beside the same line with plain rtmp2sink; writes
# docs/5-reports/uplink.md, .csv and .svg. Takes some three minutes, as root (networks of its own).
#   tests/uplink.sh [FOLDER]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/install-deps.sh" tests
. "$root/scripts/env.sh"
rust_is_new_enough

build() { cargo build --manifest-path "$root/Cargo.toml" --release --locked -q "$@"; }
# The plugin by itself, as robots have it: with the other crates it would get their features.
build -p gst-plugin-droidrelay
build -p droidrelay-lab --bin uplink
exec "${CARGO_TARGET_DIR:-$root/target}/release/uplink" "${1:-$root/docs/5-reports}"
