#!/usr/bin/env bash
# COCO 2017 panoptic as a plain folder of pictures and PNGs.
# Usage: launch/coco_folder.sh DIR     needs 42 GB while it unpacks, 21 GB afterwards; continues after a stop
# Then:  python -m pfcn_jax.main --config configs/panoptic_fcn_r50.py --config.data.root=DIR --init-from BACKBONE
set -euo pipefail
dir="${1:?usage: launch/coco_folder.sh DIR}"
mkdir -p "$dir"
for name in zips/train2017.zip zips/val2017.zip annotations/panoptic_annotations_trainval2017.zip; do
  zip="$dir/$(basename "$name")"
  if [ ! -f "$zip" ]; then
    curl --fail --location --continue-at - --output "$zip.partial" "http://images.cocodataset.org/$name"
    mv "$zip.partial" "$zip"
  fi
  unzip -q -n -d "$dir" "$zip"
done
for split in train2017 val2017; do
  unzip -q -n -d "$dir/annotations" "$dir/annotations/panoptic_$split.zip"
done
rm "$dir"/*2017.zip "$dir"/annotations/panoptic_*2017.zip
python -m pfcn_jax.main validate-data --config configs/panoptic_fcn_r50.py --config.data.root="$dir"
