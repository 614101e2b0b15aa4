#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Makes all files of a release in FOLDER: packages, images, apt repository, changelog, checksums.
#   scripts/release/make.sh ROOTS FOLDER [vX.Y.Z]
# ROOTS: where tests/packages.sh has its fresh roots of Debian. As root, on amd64; about an hour.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
roots=$1 folder=$2
version=$("$here/version.sh" "${@:3}")
rm -rf "$folder"
mkdir -p "$folder"
"$here/../../tests/packages.sh" "$roots"
cp "$roots"/builder/src/target/debian/*_"$version"_*.deb "$folder"
"$here/server-image.sh" "$folder" "$folder/droidrelay-bridge_$version"_*.deb
"$here/version.sh" --changelog >"$folder/changelog.txt"
"$here/apt-repository.sh" "$folder/apt" "$folder"/*.deb
# The apt repository has sums of its own.
cd "$folder"
find . -maxdepth 1 -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum -- >../SHA256SUMS
mv ../SHA256SUMS .
