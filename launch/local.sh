#!/usr/bin/env bash
# Trains with several processes on this machine, to rehearse a run on several hosts:
#   launch/local.sh 2 configs/quickstart.py [--key value ...]
# One fails: the others are ended too, and so is this script, with exit code 1.
set -euo pipefail
count=${1:?usage: launch/local.sh PROCESSES CONFIG [--key value ...]}
shift
PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"
export MMJAX_COORDINATOR=localhost:$((20000 + RANDOM % 20000)) MMJAX_PROCESSES=$count
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for ((i = 0; i < count; i++)); do
  MMJAX_PROCESS=$i mmjax train "$@" &
done
for ((i = 0; i < count; i++)); do
  wait -n || exit 1
done
