#!/usr/bin/env bash
# From a fresh clone to a trained, evaluated and exported policy: set-up, then the whole pipeline on embedded tasks.
#
#   ./launch/quickstart.sh [--config.FIELD=VALUE ...]
#
# Start it again after an interruption: it goes on from where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

say "ML-Agent JAX: installs into ${MLAGENT_VENV:-.venv}, then collects expert steps, trains (SFT, RL), evaluates and exports."
say "Everything of the run goes to runs/quickstart; interrupted, the same command goes on."
check_host
provide_sandbox # before minutes of installing
make_environment cpu
# Training touches hundreds of megabytes of temporaries a step: huge pages save a fifth of its time on a CPU.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/quickstart --tour "$@"
