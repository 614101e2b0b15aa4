#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Feeds every fuzz target (fuzz/) for SECONDS each, 60 by default; exits 1 when one of them fails.
#   tests/fuzz.sh [--pack] [SECONDS [TARGET]...]
# Each target begins with the corpus in fuzz/corpus/TARGET.tar.gz, unpacked into fuzz/target. What
# makes a target fail is kept in fuzz/artifacts/TARGET; what it finds besides goes away again.
# --pack: instead, what the target began with and what it found is minimised and packed as the new
# fuzz/corpus/TARGET.tar.gz, byte for byte the same for the same inputs.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
pack=
if [ "${1:-}" = --pack ]; then
    pack=yes
    shift
fi
seconds=${1:-60}
[ $# = 0 ] || shift
"$root/scripts/install-deps.sh" tests || exit 1
. "$root/scripts/env.sh"
rust_is_new_enough || exit 1
if ! cargo fuzz --version >/dev/null 2>&1; then
    cargo install --locked --quiet cargo-fuzz || exit 1
fi
# cargo-fuzz passes flags that the stable compiler accepts only with this set.
export RUSTC_BOOTSTRAP=1
cd "$root" || exit 1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(basename -s .rs fuzz/fuzz_targets/*.rs)

archive() {
    (cd "$1" && LC_ALL=C ls | tar --create --format=ustar --files-from=- \
        --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=0644) | gzip -9n
}

failed=0
for target in "${targets[@]}"; do
    corpus=fuzz/target/corpus/$target
    rm -rf "$corpus"
    mkdir -p "$corpus" "$scratch/$target"
    # A new target has none yet.
    if [ -e "fuzz/corpus/$target.tar.gz" ]; then
        tar --extract --gzip --file="fuzz/corpus/$target.tar.gz" --directory="$corpus" || failed=1
    fi
    if cargo fuzz run -s none "$target" "$scratch/$target" "$corpus" -- \
        -max_total_time="$seconds" -timeout=10 -print_final_stats=1 >"$scratch/log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$scratch/log")
        echo "$target: $runs inputs in $seconds s, nothing found"
    else
        failed=1
        cat "$scratch/log"
        echo "$target: FAILED, see fuzz/artifacts/$target" >&2
        continue
    fi
    if [ -n "$pack" ]; then
        cp -n "$scratch/$target"/* "$corpus/" 2>/dev/null
        if cargo fuzz cmin -s none "$target" "$corpus" -- -use_counters=0 >"$scratch/log" 2>&1; then
            archive "$corpus" >"fuzz/corpus/$target.tar.gz"
            echo "$target: packed $(ls "$corpus" | wc -l) inputs"
        else
            failed=1
            cat "$scratch/log"
        fi
    fi
done
exit "$failed"
