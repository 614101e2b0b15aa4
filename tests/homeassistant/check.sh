#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Runs check.py, which holds the announcement against Home Assistant's own code, in a Python
# environment that is made for it (some 500 MB, kept for the next time). No part of tests/run.sh.
#   tests/homeassistant/check.sh [ARGUMENT...]     check.py's; the plugin: GST_PLUGIN_PATH, else target/debug
# Needs Python 3.13, which the package homeassistant asks for; without it exits 77.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
packages=(homeassistant==2025.4.4 paho-mqtt==2.1.0)
venv=${XDG_CACHE_HOME:-$HOME/.cache}/droidrelay/${packages[0]}

is_313() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null
}
if [ ! -e "$venv/complete" ]; then
    for python in python3.13 python3 "$HOME"/.pyenv/versions/3.13.*/bin/python3; do
        if is_313 "$python"; then
            break
        fi
        python=
    done
    if [ -z "$python" ]; then
        echo "NOT RUN: Home Assistant's code needs Python 3.13, which is not here (nor below ~/.pyenv/versions)" >&2
        exit 77
    fi
    echo "making $venv" >&2
    "$python" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"
    touch "$venv/complete"
fi

export GST_PLUGIN_PATH=${GST_PLUGIN_PATH:-${CARGO_TARGET_DIR:-$root/target}/debug}
PATH=$PATH:/usr/sbin:/usr/local/sbin
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export GST_REGISTRY=$scratch/registry
"$venv/bin/python" "$root/tests/homeassistant/check.py" "$@"
