#!/usr/bin/env bash
# COCO 2017 panoptic -> ArrayRecord (TFDS layout), read from the zip files in place: nothing is unpacked.
# Usage: launch/coco_tfds.sh DIR     needs 20 GB for the zips and 20 GB for the records; continues after a stop
# Then:  python -m pfcn_jax.main --config configs/panoptic_fcn_r50.py --config.data.source=tfds --config.data.root=DIR/tfds \
#          --init-from BACKBONE
set -euo pipefail
dir="${1:?usage: launch/coco_tfds.sh DIR}"
mkdir -p "$dir/zips"
for name in zips/train2017.zip zips/val2017.zip annotations/panoptic_annotations_trainval2017.zip; do
  zip="$dir/zips/$(basename "$name")"
  if [ ! -f "$zip" ]; then
    curl --fail --location --continue-at - --output "$zip.partial" "http://images.cocodataset.org/$name"
    mv "$zip.partial" "$zip"
  fi
done
python -m pfcn_jax.main prepare tfds --input "$dir/zips" --output "$dir/tfds"
