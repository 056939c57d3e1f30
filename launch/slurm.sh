#!/usr/bin/env bash
# A run under Slurm: a job for the trainer on nodes with accelerators, and an array of jobs of workers.
#
#   launch/slurm.sh --config=FILE --workdir=DIR [--config.FIELD=VALUE ...]
#
#     --workdir=DIR           on storage that all nodes share, like this checkout and its .venv
#     --name=NAME             of the jobs; default: mlagent
#     --nodes=N               of the trainer, default: 1, with
#     --gpus_per_node=N       default: 8; 0: none are asked for
#     --cpus=N                of the trainer's nodes; default: 16
#     --partition=NAME        of the trainer; default: Slurm's
#     --time=LIMIT            of the trainer, which goes on in a new job after it; default: 1-00:00:00
#     --workers=N             jobs of workers, default: 4; 0: they are started elsewhere. Of
#     --slots=N               executions at once each, default: 8, a core each
#     --worker_partition=NAME default: Slurm's
#     --worker_time=LIMIT     default: 7-00:00:00; they end with the trainer
#     --role=NAME             the PostgreSQL role of workers; default: worker
#     --environment=A,B       variables of this shell that the jobs get (PGPASSWORD ...). WORKER_PGPASSWORD, where it is
#                             set, is the workers' PGPASSWORD
#     --wait                  wait for the trainer's job, and end with its status
#     --dry_run               print the commands, change nothing
#
# The trainer saves and is queued again after SIGTERM (a pre-emption, its time limit). Needs sbatch, an environment made
# by `pip install '.[cuda,postgres,gcs]'` in .venv (MLAGENT_VENV), PostgreSQL, and bubblewrap on the nodes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/common.sh

declare -A option=([workdir]="" [name]="mlagent" [nodes]=1 [gpus_per_node]=8 [cpus]=16 [partition]="" [time]="1-00:00:00"
  [workers]=4 [slots]=8 [worker_partition]="" [worker_time]="7-00:00:00" [role]="worker" [environment]="" [wait]=false)
parse_options "$@"
required_options workdir
check_name
read_config workers.queue workers.store workers.sandbox tasks.folder
need sbatch "run this on a login node of the cluster"
venv="$(realpath -m "${MLAGENT_VENV:-.venv}")"
[ -x "$venv/bin/python" ] || lack "$venv has no Python: make it with the extras of the nodes (pip install '.[cuda,postgres,gcs]'), or set MLAGENT_VENV"
[ "${option[workers]}" = 0 ] || check_queue_of_many_hosts
case "${option[workdir]}" in
  *://*) [ -n "${config[tasks.folder]}" ] || lack "config.tasks.folder is empty: with a workdir in a bucket, tasks need a folder that nodes share" ;;
esac
check_prerequisites

workdir="${option[workdir]}"
case "$workdir" in *://*) ;; *) workdir="$(realpath -m "$workdir")" ;; esac
store="${config[workers.store]:-$workdir/store}"
tasks="${config[tasks.folder]:-$workdir/tasks}"
sandbox="${config[workers.sandbox]}"
queue="$(sed -E "s#^(postgresql://)([^@/]*@)?#\1${option[role]}@#" <<<"${config[workers.queue]}")"
logs="$workdir/logs"
case "$logs" in *://*) logs="$HOME/mlagent-logs" ;; esac
perform mkdir -p "$logs"

# Variables go by the environment of sbatch, never on a command line.
for variable in ${option[environment]//,/ }; do
  [ -n "${!variable+set}" ] || fail "--environment names $variable, which is not set here"
  export "${variable?}"
done

wait_for() {
  local state
  say "trainer: job $1; its log is $logs/trainer.log"
  [ "${option[wait]}" = true ] || exit 0
  while true; do
    state="$(scontrol --oneliner show job "$1" | grep -o ' JobState=[A-Z_]*' | cut -d = -f 2)"
    case "$state" in
      COMPLETED) exit 0 ;;
      PENDING | CONFIGURING | RUNNING | COMPLETING | REQUEUED | SUSPENDED | RESIZING | SIGNALING | STAGE_OUT) ;;
      *) fail "the trainer's job $1 ended: ${state:-unknown}; its log is $logs/trainer.log" ;;
    esac
    sleep "${MLAGENT_RETRY_SECONDS:-15}"
  done
}

# Started again after an interruption, this waits for the job there is.
if ! dry; then
  jobs="$(squeue --noheader --me "--name=${option[name]}" --format=%A)" || fail "squeue does not answer"
  [ -z "$jobs" ] || wait_for "${jobs%%$'\n'*}"
fi

workers_job=""
if [ "${option[workers]}" != 0 ]; then
  array=("--job-name=${option[name]}-workers" "--array=1-${option[workers]}" "--cpus-per-task=${option[slots]}"
    "--time=${option[worker_time]}" "--output=$logs/worker-%a.log")
  [ -z "${option[worker_partition]}" ] || array+=("--partition=${option[worker_partition]}")
  array+=(launch/slurm/workers.sbatch "$PWD" "$venv" "$tasks" "--store=$store" "--slots=${option[slots]}" "--sandbox=$sandbox")
  if dry; then
    perform sbatch "${array[@]}"
    workers_job=WORKERS_JOB
  else
    workers_job="$(MLAGENT_QUEUE="$queue" PGPASSWORD="${WORKER_PGPASSWORD:-${PGPASSWORD:-}}" sbatch --parsable "${array[@]}")"
    say "workers: job $workers_job"
  fi
fi
trainer=("--job-name=${option[name]}" "--nodes=${option[nodes]}" "--cpus-per-task=${option[cpus]}" "--time=${option[time]}"
  "--output=$logs/trainer.log")
[ "${option[gpus_per_node]}" = 0 ] || trainer+=("--gpus-per-node=${option[gpus_per_node]}")
[ -z "${option[partition]}" ] || trainer+=("--partition=${option[partition]}")
trainer+=(launch/slurm/trainer.sbatch "$PWD" "$venv" "$workers_job" "${settings[@]}" "--workdir=$workdir" --config.workers.slots=0)
if dry; then
  perform sbatch "${trainer[@]}"
  exit
fi
wait_for "$(sbatch --parsable "${trainer[@]}")"
