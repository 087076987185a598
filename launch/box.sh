#!/usr/bin/env bash
# Train on this machine: one process drives all its GPUs, or its CPU. The same command again continues.
# Usage: launch/box.sh CONFIG WORKDIR [--config.key=value ...]     in the environment of the README
set -euo pipefail
usage="usage: launch/box.sh CONFIG WORKDIR [--config.key=value ...]"
config="${1:?$usage}" workdir="${2:?$usage}"
exec python -m pfcn_jax.main --config "$config" --workdir "$workdir" "${@:3}"
