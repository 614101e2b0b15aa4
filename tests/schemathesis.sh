#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Asks the bridge everything that its OpenAPI document allows, and what it does not, by schemathesis;
# exits 1 when it answers with a 5xx, or otherwise than the document says.
#   tests/schemathesis.sh [--short]     --short: fewer questions, about half a minute
# The bridge: $BRIDGE, else one that it builds. Schemathesis comes from PyPI into a scratch folder.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/env.sh"
examples=200
phases=examples,coverage,fuzzing,stateful
wait=
if [ "${1:-}" = --short ]; then
    examples=5
    phases=coverage,fuzzing
    # Nothing that waits a minute because it is asked to.
    wait='[parameters]
"query.wait" = 0.1'
fi
bridge=${BRIDGE:-}
if [ -z "$bridge" ]; then
    "$root/scripts/install-deps.sh" tests
    rust_is_new_enough
    cargo build --manifest-path "$root/Cargo.toml" -p droidrelay-bridge --locked -q
    bridge=${CARGO_TARGET_DIR:-$root/target}/debug/droidrelay-bridge
fi

scratch=$(mktemp -d)
broker_id=
bridge_id=
end() {
    [ -z "$bridge_id" ] || kill "$bridge_id" 2>/dev/null || true
    [ -z "$broker_id" ] || kill "$broker_id" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$scratch"
}
trap end EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$scratch/packages" 'schemathesis>=4.3,<5'

# Any free port: another process may take it first.
for _ in 1 2 3 4 5; do
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat >"$scratch/mosquitto.conf" <<EOF
user root
listener $port 127.0.0.1
allow_anonymous true
EOF
    mosquitto -c "$scratch/mosquitto.conf" >"$scratch/mosquitto.log" 2>&1 &
    broker_id=$!
    for _ in $(seq 100); do
        if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break 2; fi
        kill -0 $broker_id 2>/dev/null || break
        sleep 0.1
    done
done

head -c 32 /dev/urandom | base64 | tr -d '+/=' >"$scratch/token"
head -c 48 /dev/urandom | base64 | tr -d '\n' >"$scratch/share.key"
cat >"$scratch/bridge.toml" <<EOF
listen = "127.0.0.1:0"
[mqtt]
broker = "mqtt://127.0.0.1:$port"
[robots]
topic = "robots/{robot}/stream"
default = "r1"
[failures]
burst = 1000000
[share]
key-file = "share.key"
[[user]]
name = "admin"
role = "admin"
token = "$("$bridge" hash-password --sha256 <"$scratch/token")"
EOF
: >"$scratch/bridge.log"
"$bridge" --config "$scratch/bridge.toml" 2>>"$scratch/bridge.log" &
bridge_id=$!
url=
for _ in $(seq 100); do
    url=$(sed -n 's/.*listening on \(http:[^ ]*\).*/\1/p' "$scratch/bridge.log")
    if [ -n "$url" ] && python3 -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1])' "$url/healthz" 2>/dev/null; then
        break
    fi
    sleep 0.1
done
[ -n "$url" ] || {
    cat "$scratch/bridge.log" >&2
    exit 1
}

cd "$scratch"
printf '%s\n' "$wait" >schemathesis.toml
# An event stream has no end; it has tests of its own.
PYTHONPATH=$scratch/packages PYTHONDONTWRITEBYTECODE=1 python3 -m schemathesis.cli run "$url/openapi.json" \
    --header "Authorization: Bearer $(cat "$scratch/token")" \
    --exclude-path /events \
    --phases "$phases" --max-examples "$examples" --request-timeout 70 --suppress-health-check all \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method,negative_data_rejection ||
    {
        status=$?
        tail -n 20 "$scratch/bridge.log" >&2
        exit "$status"
    }
kill -0 "$bridge_id"
