#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# All checks and tests, or only those of some stages. The last line is "N passed, N failed"; exits 1
# when anything failed.
#   tests/run.sh [STAGE]...
# Stages: format clippy build no-tls documents tests inspect launch-files fuzz faults packages
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
stages=(format clippy build no-tls documents tests inspect launch-files fuzz faults packages)
for stage in "$@"; do
    [[ " ${stages[*]} " == *" $stage "* ]] || {
        echo "$0: no stage $stage: there are ${stages[*]}" >&2
        exit 64
    }
done
[ $# = 0 ] || stages=("$@")
scripts/install-deps.sh tests || exit 1
. scripts/env.sh
rust_is_new_enough || exit 1

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export GST_PLUGIN_PATH=$target/debug
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0
failed=0
failures=()
times=()

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

no_crate_of() {
    local found
    found=$(cargo tree "${@:2}" --locked -e normal --prefix none) || return 1
    ! grep -E "^($1) " <<<"$found"
}

stage_format() { check "format" cargo fmt --all --check; }

stage_clippy() { check "clippy" cargo clippy --workspace --all-targets --locked -- -D warnings; }

# With the tests: their stage and the faults run what is made here.
stage_build() { check "build" cargo build --workspace --all-targets --locked; }

# The plugin alone: with the workspace's other crates it would get their features.
stage_no_tls() {
    check "clippy without TLS" \
        cargo clippy -p gst-plugin-droidrelay --no-default-features --locked -- -D warnings
    check "tests without TLS" cargo test -q -p droidrelay-wire --no-default-features --locked
    check "no TLS without TLS" no_crate_of "rustls|ring|tokio-rustls|rustls-native-certs" \
        -p gst-plugin-droidrelay --no-default-features
}

stage_documents() {
    check "links in documents" scripts/check-links.py
    check "licence headers, one minimum Rust version" scripts/check-sources.sh
}

stage_tests() {
    if [ -z "${MEDIAMTX:-}" ] && ! command -v mediamtx >/dev/null; then
        echo "== NOTE: no MediaMTX here (neither \$MEDIAMTX nor in PATH): the tests against it do not run" >&2
    fi
    if [ -z "${NODE_MEDIA_SERVER:-}" ] || [ -z "${LALSERVER:-}" ]; then
        echo "== NOTE: \$NODE_MEDIA_SERVER or \$LALSERVER is not set (scripts/install-servers.sh): the tests against them do not run" >&2
    fi
    echo "== tests"
    # They wait more than they compute: for servers, leases and time-outs.
    export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((3 * $(nproc)))}
    local status tests_passed tests_failed
    cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    read -r tests_passed tests_failed < <(
        awk '/^test result:/ { passed += $4; failed += $6 } END { print passed + 0, failed + 0 }' "$log"
    )
    passed=$((passed + tests_passed))
    failed=$((failed + tests_failed))
    # A test program that does not build or dies has no result line of its own.
    if [ "$status" != 0 ] && [ "$tests_failed" = 0 ]; then
        failed=$((failed + 1))
        failures+=("cargo test (exit $status)")
    elif [ "$tests_failed" != 0 ]; then
        failures+=("$tests_failed of cargo test's")
    fi
}

stage_inspect() { check "docs/4-reference as gst-inspect-1.0 says it" scripts/inspect-docs.sh; }

stage_launch_files() {
    local file
    for file in pipelines/*.launch; do
        check "$file in gst-launch-1.0" scripts/try-launch.sh "$file"
    done
}

stage_fuzz() { check "fuzzing, in its short form" tests/fuzz.sh 5; }

stage_faults() { check "every fault, in its short form" tests/faults.sh --short --jobs 4; }

stage_packages() { check "packages, and their units" tests/packages.sh; }

for stage in "${stages[@]}"; do
    began=$SECONDS
    "stage_${stage//-/_}"
    times+=("$(printf '%-13s %2d min %02d s' "$stage" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)))")
done

echo "== time of each stage"
printf '%s\n' "${times[@]}"
for failure in ${failures+"${failures[@]}"}; do
    echo "FAILED: $failure"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
