#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Writes FOLDER/SHA256SUMS, with a line for each file in FOLDER. The apt repository below it has
# sums of its own.
#   scripts/release/checksums.sh FOLDER
set -euo pipefail
cd "$1"
find . -maxdepth 1 -type f ! -path ./SHA256SUMS -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum -- >SHA256SUMS
