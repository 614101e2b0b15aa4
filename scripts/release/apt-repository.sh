#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Makes an apt repository of packages in FOLDER, which any web server can hand out as it is.
#   scripts/release/apt-repository.sh FOLDER PACKAGE.deb...
# SIGNING_KEY: the key of gpg's that signs it; its public half becomes FOLDER/droidrelay.gpg.
# Without one the repository is for apt sources that say [trusted=yes].
# Debian 12 and 13 have a suite each; the packages are the same (scripts/packages.sh).
set -euo pipefail
folder=$1
shift
rm -rf "$folder"
mkdir -p "$folder/pool"
cp "$@" "$folder/pool"
cd "$folder"
for suite in bookworm trixie; do
    for arch in amd64 arm64; do
        index=dists/$suite/main/binary-$arch
        mkdir -p "$index"
        apt-ftparchive --arch "$arch" packages pool >"$index/Packages"
        [ -s "$index/Packages" ] || {
            echo "no package for $arch" >&2
            exit 1
        }
        gzip -9nk "$index/Packages"
    done
    apt-ftparchive \
        -o APT::FTPArchive::Release::Origin=Droidrelay \
        -o APT::FTPArchive::Release::Label=Droidrelay \
        -o APT::FTPArchive::Release::Suite=$suite \
        -o APT::FTPArchive::Release::Codename=$suite \
        -o APT::FTPArchive::Release::Components=main \
        -o "APT::FTPArchive::Release::Architectures=amd64 arm64" \
        release dists/$suite >Release
    mv Release dists/$suite/Release
    if [ -n "${SIGNING_KEY:-}" ]; then
        gpg --batch --yes --local-user "$SIGNING_KEY" --clear-sign --output dists/$suite/InRelease dists/$suite/Release
    fi
done
if [ -n "${SIGNING_KEY:-}" ]; then
    gpg --batch --yes --export --output droidrelay.gpg "$SIGNING_KEY"
fi
