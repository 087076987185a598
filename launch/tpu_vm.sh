#!/usr/bin/env bash
# Train on a TPU VM: makes it, installs the committed state of this checkout on it, trains. The same command again continues.
# Usage: launch/tpu_vm.sh NAME ZONE TYPE SHARE CONFIG RUN [--config.key=value ...]     needs gcloud with a project
#   as   launch/tpu_vm.sh pfcn us-east5-b v6e-8 10.0.0.2:/share configs/panoptic_fcn_r50.py r50 --config.data.root=share/coco \
#          --init-from=share/r50_imagenet
# SHARE is a file server (NFS, as Filestore), there as the folder share/: data and runs outlive the machine; RUN is a folder
# on it. RUNTIME in the environment is the software version that goes with TYPE. The training outlives the connection: while
# it runs, this command only shows it again. To stop it: gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='kill -- -$(cat pfcn/pid)'
set -euo pipefail
usage="usage: launch/tpu_vm.sh NAME ZONE TYPE SHARE CONFIG RUN [--config.key=value ...]"
name="${1:?$usage}" zone="${2:?$usage}" type="${3:?$usage}" share="${4:?$usage}" config="${5:?$usage}" run="${6:?$usage}"
cd "$(dirname "$0")/.."
tpu() { gcloud compute tpus tpu-vm "$@" --zone="$zone"; }
tpu describe "$name" > /dev/null 2>&1 ||
  tpu create "$name" --accelerator-type="$type" --version="${RUNTIME:-v2-alpha-tpuv6e}"
packed="$(mktemp -d)/pfcn.tar"
git archive --output="$packed" HEAD
tpu scp "$packed" "$name:pfcn.tar" --worker=all
# What was stopped (75), or killed because another process was lost (128 and more), starts again.
# shellcheck disable=SC2016
again='stop=; trap "stop=1" TERM
for try in $(seq 100); do
  .venv/bin/python -m pfcn_jax.main "$@"; status=$?
  [ -z "$stop" ] || break
  [ $status -eq 75 ] || [ $status -ge 128 ] || break
done; echo $status > status'
flags="$(printf '%q ' --config "$config" --workdir "share/$run" "${@:7}")"
tpu ssh "$name" --worker=all --command="set -eu
if ! pgrep -F pfcn/pid -f pfcn_jax > /dev/null 2>&1; then
  mkdir -p pfcn/share && tar -xf pfcn.tar -C pfcn && cd pfcn
  command -v mount.nfs > /dev/null || {
    sudo apt-get -o DPkg::Lock::Timeout=600 update -q && sudo apt-get -o DPkg::Lock::Timeout=600 install -qy nfs-common
  } > /dev/null
  mountpoint -q share || sudo mount -t nfs $share share
  python3 -m pip install -q --user uv
  python3 -m uv venv -q --allow-existing --python=3.12 .venv
  python3 -m uv pip install -q --python=.venv -r requirements.txt -r requirements-tpu.txt
  rm -f status && touch train.log
  setsid nohup sh -c '$again' train $flags >> train.log 2>&1 &
  echo \$! > pid
else cd pfcn; fi
tail -n +1 --pid=\"\$(cat pid)\" -F train.log || true
exit \"\$(cat status || echo 1)\""
