#!/bin/sh
# Called by meson.build: CARGO SOURCE FOLDER PROFILE OUTPUT...
set -eu
cargo=$1 source=$2 folder=$3 profile=$4
shift 4
"$cargo" build --locked --profile "$profile" --manifest-path "$source/Cargo.toml" \
    --target-dir "$folder/target" -p gst-plugin-droidrelay -p droidrelay-bridge -p droidrelay
made=$folder/target/$([ "$profile" = dev ] && echo debug || echo release)
for output; do cp "$made/${output##*/}" "$output"; done
