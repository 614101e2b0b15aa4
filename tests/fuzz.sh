#!/bin/bash
# Feeds every fuzz target (fuzz/) for SECONDS each, 60 by default; exits 1 when one of them fails.
#   tests/fuzz.sh [SECONDS]
# What fails is kept in fuzz/artifacts/TARGET. The corpus in fuzz/corpus is what it begins with;
# what it finds goes to a scratch folder, or into the corpus, minimised, with GROW=1.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
seconds=${1:-60}
"$root/scripts/install-deps.sh" tests || exit 1
. "$root/scripts/env.sh"
rust_is_new_enough || exit 1
if ! cargo fuzz --version >/dev/null 2>&1; then
    cargo install --locked --quiet cargo-fuzz || exit 1
fi
# cargo-fuzz wants flags of rustc's that the stable compiler takes only so.
export RUSTC_BOOTSTRAP=1
cd "$root" || exit 1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

failed=0
for target in fuzz/fuzz_targets/*.rs; do
    target=$(basename "$target" .rs)
    corpus=fuzz/corpus/$target
    mkdir -p "$corpus" "$scratch/$target"
    if cargo fuzz run -s none "$target" "$scratch/$target" "$corpus" -- \
        -max_total_time="$seconds" -timeout=10 -print_final_stats=1 >"$scratch/log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$scratch/log")
        echo "$target: $runs inputs in $seconds s, nothing found"
    else
        failed=1
        cat "$scratch/log"
        echo "$target: FAILED, see fuzz/artifacts/$target" >&2
    fi
    if [ -n "${GROW:-}" ]; then
        cp -n "$scratch/$target"/* "$corpus/" 2>/dev/null
        cargo fuzz cmin -s none "$target" "$corpus" -- -use_counters=0 2>/dev/null || failed=1
    fi
done
exit "$failed"
