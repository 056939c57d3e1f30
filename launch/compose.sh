#!/usr/bin/env bash
# A run on one host with Docker: PostgreSQL, the trainer and workers as containers (launch/compose.yaml).
#
#   launch/compose.sh --config=FILE --name=NAME [--config.FIELD=VALUE ...]
#
#     --name=NAME       of the run: its workdir is RUNS/NAME here, and /runs/NAME in the containers
#     --runs=DIR        default: runs; paths in the config (checkpoints, trajectories) are under /runs
#     --workers=N       worker containers, default: 2, of
#     --slots=N         executions at once each, default: 2
#     --port=N          of PostgreSQL at 127.0.0.1; default: 5433
#     --image=NAME      of launch/image.sh; default: mlagent-jax:local
#     --stop            save and stop the run; the same command without it goes on
#     --dry_run         print the commands, change nothing
#
# Interrupted here, the run goes on; the same command shows its log again. Needs a Docker engine with Compose.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/common.sh

declare -A option=([name]="" [runs]=runs [workers]=2 [slots]=2 [port]=5433 [image]=mlagent-jax:local [stop]=false)
parse_options "$@"
required_options name
check_name
need docker "install a Docker engine (Debian: apt-get install docker.io docker-compose), or set DOCKER_HOST"
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
else
  compose=(docker-compose)
  need docker-compose "install Compose (Debian: apt-get install docker-compose)"
fi
if command -v docker >/dev/null; then
  if ! docker info >/dev/null 2>&1; then
    lack "no Docker engine answers: start it, or set DOCKER_HOST"
  elif ! docker image inspect "${option[image]}" >/dev/null 2>&1; then
    lack "the engine has no image ${option[image]}: launch/image.sh builds it"
  fi
fi
name="${option[name]}"
runs="$(realpath -m "${option[runs]}")"
[ "${option[stop]}" = true ] || read_config workers.slots
check_prerequisites

# The roles' passwords are made once and stay: they are in the database.
secrets="$runs/$name.env"
if ! dry && [ ! -s "$secrets" ]; then
  mkdir -p "$runs"
  (umask 077 && for role in TRAINER WORKER; do
    printf '%s_PASSWORD=%s\n' "$role" "$(od -An -N 24 -tx1 /dev/urandom | tr -d ' \n')"
  done >"$secrets")
fi
arguments=("${settings[@]}" "--workdir=/runs/$name" --config.workers.slots=0 --config.workers.sandbox=bubblewrap
  "--config.workers.queue=postgresql://trainer@127.0.0.1:${option[port]}/mlagent" "--config.workers.store=/runs/$name/store")
export MLAGENT_IMAGE="${option[image]}" MLAGENT_NAME="$name" MLAGENT_PORT="${option[port]}" MLAGENT_RUNS="$runs"
export MLAGENT_SLOTS="${option[slots]}" MLAGENT_ARGUMENTS
MLAGENT_ARGUMENTS="$(quote "${arguments[@]}")"
compose+=("--project-name=mlagent-$name" "--env-file=$secrets" --file=launch/compose.yaml)

if [ "${option[stop]}" = true ]; then
  perform "${compose[@]}" down
  exit
fi
if dry; then
  [ -s "$secrets" ] || say "a file $secrets with new passwords; then"
  for variable in MLAGENT_IMAGE MLAGENT_NAME MLAGENT_PORT MLAGENT_RUNS MLAGENT_SLOTS MLAGENT_ARGUMENTS; do
    printf 'export %s=%s\n' "$variable" "$(quote "${!variable}")"
  done
fi
shown=all
while true; do
  perform "${compose[@]}" up --detach "--scale=worker=${option[workers]}"
  perform "${compose[@]}" logs --follow --no-log-prefix "--tail=$shown" trainer
  if dry; then
    say "again while the trainer ends with status $PREEMPTED; after status 0:"
    perform "${compose[@]}" down
    exit
  fi
  container="$("${compose[@]}" ps --all --quiet trainer)"
  status="$(docker wait "$container")" || fail "the run was stopped; the same command goes on"
  [ "$status" = "$PREEMPTED" ] || break
  say "the trainer was told to stop and has saved; starting it again"
  shown=0
done
[ "$status" = 0 ] || fail "the trainer ended with status $status; its log is above. Workers go on until $0 --name=$name --stop"
"${compose[@]}" down
say "done: $runs/$name"
