#!/usr/bin/env bash
# Trains with several processes on this machine: launch/local.sh 2 configs/quickstart.py [--key value ...]
set -euo pipefail
count=${1:?usage: launch/local.sh PROCESSES CONFIG [--key value ...]}
shift
port=$((20000 + RANDOM % 20000))
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for ((i = 0; i < count; i++)); do
  MMJAX_COORDINATOR=localhost:$port MMJAX_PROCESSES=$count MMJAX_PROCESS=$i mmjax train "$@" &
done
while wait -n; do [ -n "$(jobs -r)" ] || exit 0; done
exit 1  # one process failed: the trap ends the others
