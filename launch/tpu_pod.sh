#!/usr/bin/env bash
# Train on a TPU pod slice: as launch/tpu_vm.sh, on all its machines at once; they find each other through the pod.
# Usage: launch/tpu_pod.sh NAME ZONE TYPE SHARE CONFIG RUN [--config.key=value ...]
#   as   launch/tpu_pod.sh pfcn us-east5-b v6e-32 10.0.0.2:/share configs/panoptic_fcn_r50.py r50 \
#          --config.data.root=share/coco --init-from=share/r50_imagenet --config.train.batch_size=64
set -euo pipefail
: "${6:?usage: launch/tpu_pod.sh NAME ZONE TYPE SHARE CONFIG RUN [--config.key=value ...]}"
exec "$(dirname "$0")/tpu_vm.sh" "$@" --distributed
