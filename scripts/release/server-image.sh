#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Builds the server's image (mediamtx/Dockerfile) from droidrelay-bridge's packages, for the
# architecture of each; FOLDER/droidrelay-server_VERSION_ARCH.tar.gz is for `docker load`, and then
# the image that mediamtx/compose.yml names.
#   scripts/release/server-image.sh FOLDER droidrelay-bridge_VERSION_ARCH.deb...
# By buildah, without a daemon, as root. DEBIAN_IMAGE and MEDIAMTX_IMAGE stand in for the images
# that the Dockerfile names; "ARCH" in them becomes the architecture.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/scripts/env.sh"
mkdir -p "$1"
folder=$(realpath "$1")
shift
"$root/scripts/install-deps.sh" release
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Neither a container runtime nor an overlay inside another one is needed.
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs

for package; do
    arch=$(dpkg-deb --field "$package" Architecture)
    version=$(dpkg-deb --field "$package" Version)
    image=droidrelay-server:$version-$arch
    [ "$arch" != arm64 ] || emulate_arm64
    rm -rf "$scratch/packages"
    mkdir "$scratch/packages"
    cp "$package" "$scratch/packages"
    bases=()
    [ -z "${DEBIAN_IMAGE:-}" ] || bases+=(--build-arg "DEBIAN=${DEBIAN_IMAGE//ARCH/$arch}")
    [ -z "${MEDIAMTX_IMAGE:-}" ] || bases+=(--build-arg "MEDIAMTX=${MEDIAMTX_IMAGE//ARCH/$arch}")
    buildah build --platform "linux/$arch" --build-arg PACKAGES=given "${bases[@]}" \
        --file "$root/mediamtx/Dockerfile" --tag "$image" "$scratch"

    # Each of its programs runs, and they have their users.
    container=$(buildah from --arch "$arch" "localhost/$image")
    buildah run "$container" sh -ec '
        droidrelay-bridge --version
        mediamtx --version
        mosquitto -h | head -n 1
        id -u mosquitto droidrelay-media droidrelay-bridge
        /usr/share/droidrelay/mediamtx/setup.sh /tmp/server server.example robot1 >/dev/null
        droidrelay-bridge --config /tmp/server/bridge.toml --check
    '
    buildah rm "$container" >/dev/null

    archive=$folder/droidrelay-server_${version}_$arch.tar
    rm -f "$archive" "$archive.gz"
    buildah push "localhost/$image" "docker-archive:$archive:$(sed -n '/DROIDRELAY_IMAGE:-/{s/.*:-\(.*\)}.*/\1/p;q}' "$root/mediamtx/compose.yml"):latest"
    gzip "$archive"
    ls -l "$archive.gz"
done
