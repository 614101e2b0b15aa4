#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Runs the plugin's tests under valgrind's memcheck; exits 1 where one of them reads or writes what
# it must not, or loses memory for good.
#   tests/memcheck.sh [TEST]...     of a test program's name; all of them by default
# tests/memcheck.supp says what is known and not ours. Left out are tests that measure a time, which
# is another one here.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/install-deps.sh" tests || exit 1
. "$root/scripts/env.sh"
rust_is_new_enough || exit 1
cd "$root" || exit 1

log=$(mktemp)
trap 'rm -f "$log"' EXIT
suppressions=(--suppressions="$root/tests/memcheck.supp")
glib=/usr/share/glib-2.0/valgrind/glib.supp
[ ! -e $glib ] || suppressions+=(--suppressions=$glib)
# In which the tests find their files.
cd gst-plugin-droidrelay || exit 1
skip=(
    --skip a_hot_valve_begins_with_what_was_before_the_opening
    --skip history_comes_faster_than_real_time
    # What ring's assembler encrypts counts as not written.
    --skip while_the_certificate_is_refused
    --skip whatever_provider_the_process_has_the_plugin_uses_its_own
    # GStreamer itself gives up what is dropped while it plays.
    --skip a_pipeline_that_is_dropped_while_it_plays_hangs_nobody
    # Reading the system's certificates takes longer than its deadline.
    --skip a_location_with_tls_is_never_published_to_without
    --skip while_a_connection_is_silent
)
failed=0
while read -r program; do
    name=$(basename "$program")
    name=${name%-*}
    if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then
        continue
    fi
    # One test at a time: valgrind has one thread run at a time anyway, and their deadlines are
    # those of a machine twenty times as fast.
    if G_SLICE=always-malloc G_DEBUG=gc-friendly CARGO_MANIFEST_DIR=$PWD valgrind -q \
        --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite \
        --error-exitcode=99 --num-callers=30 --fair-sched=yes "${suppressions[@]}" \
        "$program" --test-threads=1 "${skip[@]}" >"$log" 2>&1; then
        echo "$name: $(grep '^test result' "$log"); nothing found"
    else
        failed=1
        cat "$log"
        echo "$name: FAILED" >&2
    fi
done < <(
    cargo test -p gst-plugin-droidrelay --no-run --locked --message-format=json 2>/dev/null |
        sed -n 's/.*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\1/p'
)
exit "$failed"
