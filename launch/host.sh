#!/usr/bin/env bash
# On one accelerator host: install, start the trainer or find it running, and show its log until it ends.
#
#   launch/host.sh EXTRAS TRAINER ARGUMENT ...
#
# The trainer does not depend on the connection that started it: called again with the trainer at work, this shows the log
# on. Its exit status is this one's, and stays in `run/status`. `launch/tpu_pod.sh` calls it on every host of a slice.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

extras="$1"
shift
mkdir -p run
if ! { [ -s run/pid ] && kill -0 "$(cat run/pid)" 2>/dev/null; }; then
  (find_python >/dev/null 2>&1) || apt_install python3.11 python3.11-venv
  make_environment "$extras"
  command -v bwrap >/dev/null || docker info >/dev/null 2>&1 || apt_install bubblewrap
  # shellcheck disable=SC1091 # made on the host
  [ ! -f run/environment ] || . run/environment
  rm -f run/status
  # shellcheck disable=SC2016 # for the inner shell
  setsid nohup bash -c 'python -m mlagent_jax.train "$@"; echo $? >run/status.partial; mv run/status.partial run/status' \
    trainer "$@" >>run/log 2>&1 </dev/null &
  echo $! >run/pid
fi
tail -n 20 -F --pid="$(cat run/pid)" run/log 2>/dev/null || true
[ -s run/status ] || fail "the trainer ended without a status: it was killed; its log is $PWD/run/log"
exit "$(cat run/status)"
