#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Does gst-launch-1.0 take a launch file? Gives it the file's words as a shell would, with what the
# file itself says how to try it without its hardware, and ends it when the pipeline is built;
# exit 0 if it was.
#   scripts/try-launch.sh FILE.launch
set -euo pipefail
file=$1
words=$(sed 's/^[[:space:]]*#.*//' "$file" | tr '\n' ' ')
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# No broker, no relay and no camera is needed for that; passwords have to be readable files.
echo unused >"$scratch/password"
export MQTT_PASSWORD_FILE=$scratch/password RTMP_PASSWORD_FILE=$scratch/password
export BROKER=mqtt://127.0.0.1:1 LOCATION=rtmp://127.0.0.1:1/live/stream
without=$(sed -nE "s/^#   --set ([A-Z_0-9]+=)('[^']*'|[^ ]*)$/export \1\2/p" "$file")
eval "$without"
export NOW=now RECORDINGS=$scratch
eval "set -- $words"

mkfifo "$scratch/output"
stdbuf -oL gst-launch-1.0 "$@" >"$scratch/output" 2>&1 &
launcher=$!
rc=1
while IFS= read -r line; do
    # This line follows the parser's success; what it could not link comes before.
    case $line in
    *"erroneous pipeline"*) echo "$file: $line" >&2 ;;
    *"Setting pipeline to PAUSED"*) rc=0 && break ;;
    *) echo "$line" >&2 ;;
    esac
done <"$scratch/output"
kill -KILL $launcher 2>/dev/null || true
wait $launcher 2>/dev/null || true
exit $rc
