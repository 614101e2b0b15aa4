#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Compares what gst-inspect-1.0 says of the elements with docs/; --update writes docs/ anew.
#   scripts/inspect-docs.sh [--update]     the plugin: GST_PLUGIN_PATH, else target/debug
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export GST_PLUGIN_PATH=${GST_PLUGIN_PATH:-${CARGO_TARGET_DIR:-$root/target}/debug}
export LC_ALL=C.UTF-8
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export GST_REGISTRY=$scratch/registry

# Leaves out what differs between builds and between GStreamer's versions: the plugin's file,
# version and date, the properties that every element or bin has, blank lines, and how the
# arguments of actions are written.
normalised() {
    gst-inspect-1.0 --no-colors "$1" | awk '
        /^ *$/ { next }
        /^[^ ]/ { heading = $0 }
        heading == "Element Flags:" { next }
        heading == "Plugin Details:" && /^  (Filename|Version|Source release date) / { next }
        heading == "Element Properties:" && /^  [a-z]/ {
            inherited = $1 ~ /^(name|parent|async-handling|message-forward)$/
        }
        heading == "Element Properties:" && inherited && /^  / { next }
        heading == "Element Actions:" && /^  / {
            if ($1 ~ /^"/) print "  " $1
            next
        }
        /^[^ ]/ && NR > 1 { print "" }
        { sub(/ +$/, ""); print }
    '
}

rc=0
mkdir -p "$root/docs/4-reference"
for element in mqttvalve rtmpauthsink; do
    normalised $element >"$scratch/$element.txt"
    if [ "${1:-}" = --update ]; then
        cp "$scratch/$element.txt" "$root/docs/4-reference/$element.txt"
    elif ! diff -u --label "docs/4-reference/$element.txt" --label "gst-inspect-1.0 $element" \
        "$root/docs/4-reference/$element.txt" "$scratch/$element.txt"; then
        echo "docs/4-reference/$element.txt is out of date; look at the change, then scripts/inspect-docs.sh --update" >&2
        rc=1
    fi
done
exit $rc
