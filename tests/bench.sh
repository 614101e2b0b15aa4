#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Measures what Droidrelay costs, beside what does the same without it; prints Markdown tables.
#   tests/bench.sh [--write] [valve|idle|latency|start|stream|valves|bridge|viewers] [OPTION]...
# All of them by default (some 45 minutes); --help names the options. --write: into
# docs/5-reports/performance.md, with plots beside it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/install-deps.sh" tests
. "$root/scripts/env.sh"
rust_is_new_enough
write=
if [ "${1:-}" = --write ]; then
    write=$root/docs/5-reports
    shift
fi

build() { cargo build --manifest-path "$root/Cargo.toml" --release --locked -q "$@"; }
# The plugin by itself, as robots have it: with the other crates it would get their features.
build -p gst-plugin-droidrelay
build -p droidrelay-bridge -p droidrelay-lab --bin droidrelay-bridge --bin bench
bench=${CARGO_TARGET_DIR:-$root/target}/release/bench
clip=()
if file=$("$root/scripts/clip.sh"); then
    clip=(--clip "$file")
fi
[ -n "$write" ] || exec "$bench" "${clip[@]}" "$@"

busy() { cut -d' ' -f1-3 /proc/loadavg; }
page=$(mktemp)
trap 'rm -f "$page"' EXIT
before=$(busy)
"$bench" "${clip[@]}" --plots "$write" "$@" | tee "$page"
{
    cat <<END
# What it costs

Made by \`tests/bench.sh --write\`: Droidrelay beside the Python scripts that it replaces
(rewritten for this as \`lab/baseline/subscriber.py\`: paho-mqtt, which starts and stops
\`gst-launch-1.0\` with rtmp2sink), in one run, with the same camera, broker and server. The ratios
are what counts: the times are those of one machine.

Machine: $(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1), $(nproc) processors,
Linux $(uname -r | cut -d- -f1), $(gst-launch-1.0 --version | sed -n 2p); $(date -u +%F). Load average
before $before, after $(busy): what is beyond the benchmark's own is other work on the machine.

END
    cat "$page"
} >"$write/performance.md"
