#!/usr/bin/env bash
# COCO 2017 panoptic as a plain folder of images and PNGs.
# Usage: launch/coco_folder.sh DIR     needs 42 GB while it unpacks, 21 GB afterwards; continues after a stop
# Then:  python -m pfcn_jax.main --config configs/panoptic_fcn_r50.py --config.data.root=DIR --init-from BACKBONE
set -euo pipefail
dir="${1:?usage: launch/coco_folder.sh DIR}"
mkdir -p "$dir"
if [ ! -f "$dir/.complete" ]; then
  for name in zips/train2017.zip zips/val2017.zip annotations/panoptic_annotations_trainval2017.zip; do
    zip="$dir/$(basename "$name")"
    if [ ! -f "$zip" ]; then
      curl --fail --location --continue-at - --output "$zip.partial" "http://images.cocodataset.org/$name"
      mv "$zip.partial" "$zip"
    fi
    unzip -q -o -d "$dir" "$zip" # over what a stop has left half-written
  done
  for split in train2017 val2017; do
    unzip -q -o -d "$dir/annotations" "$dir/annotations/panoptic_$split.zip"
  done
  touch "$dir/.complete"
fi
rm -f "$dir"/*2017.zip "$dir"/annotations/panoptic_*2017.zip
python -m pfcn_jax.main validate-data --config configs/panoptic_fcn_r50.py --config.data.root="$dir"
