#!/usr/bin/env bash
# A worker that may be started before its trainer: it waits until the tasks are prepared.
#
#   launch/images/worker.sh TASKS ARGUMENT ...    arguments of `python -m environments.worker`, --tasks left out
set -euo pipefail
tasks="$1"
shift
until compgen -G "$tasks/*/task.json" >/dev/null; do
  echo "waiting for prepared tasks in $tasks"
  sleep 5
done
exec python -m environments.worker --tasks="$tasks" "$@"
