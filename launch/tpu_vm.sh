#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU VM: copies this directory to them, installs it, and starts the same command on each:
#   launch/tpu_vm.sh NAME ZONE configs/quickstart.py [--key value ...]
# It restarts the training when the workers saved their state for maintenance (exit code 75). If the TPU was preempted and
# deleted, create it and run this script again. The run directory must be on storage that all workers see.
set -euo pipefail
name=${1:?usage: launch/tpu_vm.sh NAME ZONE CONFIG [--key value ...]} zone=${2:?ZONE is missing}
shift 2
archive=$(mktemp -d)
trap 'rm -r "$archive"' EXIT
git ls-files -z --cached --others --exclude-standard | tar -czf "$archive/mmjax.tgz" --null -T -

on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}
gcloud compute tpus tpu-vm scp "$archive/mmjax.tgz" "$name:" --zone="$zone" --worker=all
# Many images have Python 3.10, which is too old; uv downloads a newer one.
on_all "mkdir -p mmjax && tar -xzf mmjax.tgz -C mmjax && cd mmjax && export PATH=\$HOME/.local/bin:\$PATH &&
  { command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh; } &&
  uv venv -q --seed --allow-existing --python 3.11 .venv &&
  .venv/bin/pip install -q -c .ci/constraints.txt -e '.[tpu,quickstart]'"
code=75
while ((code == 75)); do
  code=0
  on_all "cd mmjax && exec .venv/bin/mmjax train ${*@Q}" || code=$?
done
exit "$code"
