#!/usr/bin/env bash
# Trains with several processes on this machine, to rehearse a run on several hosts:
#   launch/local.sh 2 configs/quickstart.py [--key value ...]
#   launch/local.sh 2:4 configs/quickstart.py    # 4 processes; if one is killed, the run goes on with 2
# On SIGTERM, SIGHUP or Ctrl-C, all processes save their state and end with 75, and this script ends with 75 too. If one process
# fails, the script ends the others and exits with 1. If a signal kills one, and LEAST allows it, the script starts half as
# many, which go on from the last checkpoint.
set -euo pipefail
count=${1:-}
if [[ ! $count =~ ^([1-9][0-9]*:)?[1-9][0-9]*$ || -z ${2:-} ]]; then
  echo 'usage: launch/local.sh [LEAST:]PROCESSES CONFIG [--key value ...]' >&2
  exit 2
fi
least=${count%:*} count=${count#*:}
shift
PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"
export MMJAX_COORDINATOR=localhost:$((20000 + RANDOM % 20000)) MMJAX_PROCESSES=$count

processes=()
# shellcheck disable=SC2317,SC2329  # the trap calls it
stop() {
  trap - HUP INT TERM
  code=75
  kill "${processes[@]}" 2>/dev/null || true
  for process in "${processes[@]}"; do
    wait "$process" || (($? == 75)) || code=1
  done
  exit "$code"
}
trap stop HUP INT TERM
trap 'kill -KILL "${processes[@]}" 2>/dev/null || true' EXIT

for ((i = 0; i < count; i++)); do
  MMJAX_PROCESS=$i mmjax train "$@" &
  processes+=($!)
done
# `wait -n` can miss one of several processes that end together, so each is waited for by its number.
code=0 running=("${processes[@]}")
while ((${#running[@]} && (code == 0 || code == 75))); do
  sleep 0.1
  alive=()
  for process in "${running[@]}"; do
    status=0
    if kill -0 "$process" 2>/dev/null; then
      alive+=("$process")
      continue
    fi
    wait "$process" || status=$?
    ((status == 0 || (status == 75 && code != 0))) || code=$status
  done
  running=("${alive[@]}")
done
((code != 0 && code != 75)) || exit "$code"

for ((i = 0; i < 100; i++)); do # 10 s for the others to report why they end
  [[ -n $(jobs -pr) ]] || break
  sleep 0.1
done
kill -KILL "${processes[@]}" 2>/dev/null || true
wait
if ((code > 128 && count / 2 >= least)); then # a signal killed it
  count=$((count / 2))
  echo "launch/local.sh: a process was lost; going on with $count" >&2
  exec "$0" "$least:$count" "$@"
fi
exit 1
