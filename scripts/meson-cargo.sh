#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# Called by meson.build: CARGO SOURCE FOLDER PROFILE OUTPUT...
# A CARGO_TARGET_DIR in the environment wins over a folder in meson's; with a CARGO_BUILD_TARGET,
# "droidrelay-here" is built besides, for the machine that builds.
set -eu
# Debian's flags and date are for C, of which there is next to none, and would make cargo build
# all anew.
unset CFLAGS CXXFLAGS CPPFLAGS LDFLAGS SOURCE_DATE_EPOCH
cargo=$1 source=$2 profile=$4
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$3/target}"
shift 4
build() { "$cargo" build --locked --profile "$profile" --manifest-path "$source/Cargo.toml" "$@"; }
subfolder=$([ "$profile" = dev ] && echo debug || echo release)
here=$CARGO_TARGET_DIR/$subfolder
made=$CARGO_TARGET_DIR/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}$subfolder
build -p gst-plugin-droidrelay -p droidrelay-bridge -p droidrelay -p droidrelay-enroll
if [ -n "${CARGO_BUILD_TARGET:-}" ]; then
    (unset CARGO_BUILD_TARGET && build -p gst-plugin-droidrelay -p droidrelay-bridge -p droidrelay -p droidrelay-enroll)
fi
for output; do
    case $output in
    *-here) cp "$here/droidrelay" "$output" ;;
    *) cp "$made/${output##*/}" "$output" ;;
    esac
done
