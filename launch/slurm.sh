#!/usr/bin/env bash
# Train on a Slurm cluster: one process for each GPU, which find each other through Slurm. Set the numbers to the cluster's.
# Usage: sbatch launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]     WORKDIR on a file system that all nodes share
# 5 minutes before its time is up the job gets SIGTERM, saves, ends and queues itself again, at most 100 times; it continues then.
#SBATCH --job-name=pfcn
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
usage="usage: sbatch launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]"
config="${1:?$usage}" workdir="${2:?$usage}"
cd "${SLURM_SUBMIT_DIR:-.}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}" # a node without its GPUs is an error, not a slow node
export SRUN_CPUS_PER_TASK="${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-1}}" # srun does not inherit it
status=0
srun --kill-on-bad-exit=0 python -m pfcn_jax.main --distributed --config "$config" --workdir "$workdir" "${@:3}" || status=$?
# Not complete: stopped (75), or a process was killed (128 and more: no memory, another process lost).
if [ "$status" -eq 75 ] || [ "$status" -ge 128 ]; then
  if [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
fi
exit "$status"
