#!/usr/bin/env bash
# Trains on Slurm, on one node or several, with GPUs or without:
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 --cpus-per-task 12 launch/slurm.sh configs/quickstart.py [--key value ...]
# Use one task per GPU, or one task per node for all its GPUs. Without --cpus-per-task, most clusters give a task one
# core, which reads data too slowly. The run directory must be on storage that all nodes see.
#SBATCH --job-name=mmjax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Send SIGTERM 180 s before the time limit: mmjax saves its state and ends with 75, and this script requeues the job.
#SBATCH --signal=TERM@180
set -euo pipefail
PATH="$SLURM_SUBMIT_DIR/.venv/bin:$PATH"
code=0
# When one task fails, the others have one minute before they are killed.
srun --kill-on-bad-exit=0 --wait=60 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} mmjax train "$@" || code=$?
if ((code == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
