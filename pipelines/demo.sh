#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# The whole of Droidrelay on this machine: broker, relay, bridge and a robot with its camera.
#   pipelines/demo.sh [--once] [--json FILE] [--picture FILE]
# Without --once it stays until Ctrl-C and shows the addresses and credentials to try it with.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/install-deps.sh"
. "$root/scripts/env.sh"
rust_is_new_enough

cargo build --manifest-path "$root/Cargo.toml" --release --locked \
    -p gst-plugin-droidrelay -p droidrelay-bridge -p droidrelay -p droidrelay-demo

clip=()
if file=$("$root/scripts/clip.sh"); then clip=(--clip "$file"); fi
# exec, so that Ctrl-C and the exit code are the demo's own.
exec "${CARGO_TARGET_DIR:-$root/target}/release/demo" "${clip[@]}" "$@"
