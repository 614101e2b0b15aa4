#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Signs and uploads what make.sh made: the one step that only the forge can do (release.yml).
#   scripts/release/publish.sh vX.Y.Z FOLDER
# SIGNING_KEY: apt-repository.sh's. GH_TOKEN, GITHUB_ACTOR: who uploads. IMAGE: the image's name.
# The files become a release of the tag, the image a list of both architectures, and the apt
# repository the branch "apt" of origin, for a web server that serves branches (GitHub Pages).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
tag=$1
folder=$(realpath "$2")
for variable in SIGNING_KEY GH_TOKEN GITHUB_ACTOR IMAGE; do
    [ -n "${!variable:-}" ] || {
        echo "$variable is not set" >&2
        exit 1
    }
done
version=$("$root/scripts/release/version.sh" "$tag")
"$root/scripts/install-deps.sh" release
"$root/scripts/release/apt-repository.sh" "$folder/apt" "$folder"/*.deb
(cd "$folder" && sha256sum --check --quiet SHA256SUMS)

buildah login --username "$GITHUB_ACTOR" --password-stdin "${IMAGE%%/*}" <<<"$GH_TOKEN"
buildah manifest create "$IMAGE:$version" >/dev/null
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for archive in "$folder"/droidrelay-server_*.tar.gz; do
    gunzip --stdout "$archive" >"$scratch/image.tar"
    id=$(buildah pull --quiet "docker-archive:$scratch/image.tar")
    buildah manifest add "$IMAGE:$version" "$id" >/dev/null
done
buildah manifest push --all "$IMAGE:$version" "docker://$IMAGE:$version"
buildah manifest push --all "$IMAGE:$version" "docker://$IMAGE:latest"

# One commit without parents: a repository of packages has no use for its history.
export GIT_INDEX_FILE=$folder/apt.index
git -C "$root" --work-tree="$folder/apt" add --force --all .
tree=$(git -C "$root" write-tree)
rm "$GIT_INDEX_FILE"
commit=$(git -C "$root" -c user.name="$GITHUB_ACTOR" -c user.email="$GITHUB_ACTOR@users.noreply.github.com" \
    commit-tree "$tree" -m "apt repository of $tag")
git -C "$root" push --force origin "$commit:refs/heads/apt"

gh release create "$tag" --verify-tag --title "Droidrelay $version" --notes-file "$folder/changelog.txt" \
    "$folder"/*.deb "$folder"/*.tar.gz "$folder/SHA256SUMS"
