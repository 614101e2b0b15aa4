#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# All checks and tests. The last line is "N passed, N failed"; exits 1 when anything failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
scripts/install-deps.sh tests || exit 1
. scripts/env.sh
rust_is_new_enough || exit 1

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0
failed=0
log=$scratch/log

# A check counts as one; of `cargo test`, each test does.
check() {
    local name=$1
    shift
    echo "== $name"
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        failures+=("$name")
    fi
}
failures=()

no_crate_of() {
    local found
    found=$(cargo tree "${@:2}" --locked -e normal --prefix none) || return 1
    ! grep -E "^($1) " <<<"$found"
}

check "format" cargo fmt --all --check
check "clippy" cargo clippy --workspace --all-targets --locked -- -D warnings
check "build" cargo build --workspace --locked
# The plugin alone: with the workspace's other crates it would get their features.
check "clippy without TLS" \
    cargo clippy -p gst-plugin-droidrelay --no-default-features --locked -- -D warnings
check "tests without TLS" cargo test -q -p droidrelay-wire --no-default-features --locked
check "no TLS without TLS" \
    no_crate_of "rustls|ring|tokio-rustls|rustls-native-certs" -p gst-plugin-droidrelay --no-default-features

if [ -z "${MEDIAMTX:-}" ] && ! command -v mediamtx >/dev/null; then
    echo "== NOTE: no MediaMTX here (neither \$MEDIAMTX nor in PATH): the tests against it do not run" >&2
fi
echo "== tests"
cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log"
test_status=${PIPESTATUS[0]}
read -r tests_passed tests_failed < <(
    awk '/^test result:/ { passed += $4; failed += $6 } END { print passed + 0, failed + 0 }' "$log"
)
passed=$((passed + tests_passed))
failed=$((failed + tests_failed))
# A test program that does not build or dies has no result line of its own.
if [ "$test_status" != 0 ] && [ "$tests_failed" = 0 ]; then
    failed=$((failed + 1))
    failures+=("cargo test (exit $test_status)")
elif [ "$tests_failed" != 0 ]; then
    failures+=("$tests_failed of cargo test's")
fi

export GST_PLUGIN_PATH=$target/debug
check "docs/ as gst-inspect-1.0 says it" scripts/inspect-docs.sh
for file in pipelines/*.launch; do
    check "$file in gst-launch-1.0" scripts/try-launch.sh "$file"
done
check "fuzzing, in its short form" tests/fuzz.sh 5
check "every fault, in its short form" tests/faults.sh --short --jobs 4
check "packages, and their units" tests/packages.sh

for failure in ${failures+"${failures[@]}"}; do
    echo "FAILED: $failure"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
