#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Makes an apt repository of packages in FOLDER, which any web server can hand out as it is.
#   scripts/release/apt-repository.sh FOLDER PACKAGE.deb...
# SIGNING_KEY: the secret key that signs it, as `gpg --armor --export-secret-keys` writes it; the
# public one becomes FOLDER/droidrelay.gpg. Without it, apt's sources have to say [trusted=yes].
# Debian 12 and 13 have a suite each; the packages are the same (scripts/packages.sh).
set -euo pipefail
folder=$1
shift
"$(dirname "$0")/../install-deps.sh" release
if [ -n "${SIGNING_KEY:-}" ]; then
    GNUPGHOME=$(mktemp -d)
    export GNUPGHOME
    trap 'gpgconf --kill all; rm -rf "$GNUPGHOME"' EXIT
    gpg --batch --quiet --import <<<"$SIGNING_KEY"
fi
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
        gpg --batch --clear-sign --output dists/$suite/InRelease dists/$suite/Release
    fi
done
if [ -n "${SIGNING_KEY:-}" ]; then
    gpg --batch --export --output droidrelay.gpg
fi
