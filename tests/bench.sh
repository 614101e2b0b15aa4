#!/bin/bash
# Measures what Droidrelay costs, beside what does the same without it; prints Markdown tables.
#   tests/bench.sh [valve|idle|start|valves|bridge] [OPTION]...     all of them by default; --help names the options
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/install-deps.sh" tests
. "$root/scripts/env.sh"
rust_is_new_enough

build() { cargo build --manifest-path "$root/Cargo.toml" --release --locked -q "$@"; }
# The plugin by itself, as robots have it: with the other crates it would get their features.
build -p gst-plugin-droidrelay
build -p droidrelay-bridge -p droidrelay-tests
exec "${CARGO_TARGET_DIR:-$root/target}/release/bench" "$@"
