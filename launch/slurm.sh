#!/usr/bin/env bash
# Train on a Slurm cluster: one process for each GPU, which find each other through Slurm. Set the numbers to the cluster's.
# Usage: sbatch launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]     WORKDIR on a file system that all nodes share
# 5 minutes before its time is up the job gets SIGTERM, saves, ends and queues itself again; it continues then.
#SBATCH --job-name=pfcn
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail
usage="usage: sbatch launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]"
config="${1:?$usage}" workdir="${2:?$usage}"
cd "${SLURM_SUBMIT_DIR:-.}"
status=0
srun python -m pfcn_jax.main --distributed --config "$config" --workdir "$workdir" "${@:3}" || status=$?
# Not complete: stopped (75), or a process was killed (128 and more: no memory, another process lost), that at most 100 times.
if [ "$status" -eq 75 ] || { [ "$status" -ge 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; }; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
