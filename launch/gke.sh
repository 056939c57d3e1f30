#!/usr/bin/env bash
# A run on Google Kubernetes Engine: a JobSet for the trainer, a Deployment of workers, and PostgreSQL.
#
#   launch/gke.sh --config=FILE --name=NAME --image=IMAGE --claim=CLAIM [--config.FIELD=VALUE ...]
#
#     --name=NAME        of the run; its workdir is /runs/NAME on the volume
#     --image=IMAGE      of launch/image.sh (--extras=tpu,postgres or cuda,postgres), in a registry that the cluster reads
#     --claim=CLAIM      a PersistentVolumeClaim that many nodes mount at once (Filestore), for tasks, store, checkpoints;
#                        it is /runs in every pod, and paths in the config are under it
#     --slice=NAME       for example v5e-16; default: config.plan.slice. The cluster needs node pools of it, and of CPUs
#     --workers=N        pods, default: 4, of
#     --slots=N          executions at once each, default: 8, a core each
#     --spot             the trainer on machines that may be taken back at any time, for less
#     --secret=NAME      a Secret whose entries are variables of trainer and workers (HF_TOKEN ...)
#     --storage=SIZE     of PostgreSQL's disk; default: 20Gi
#     --wait             wait until the trainer is done, and end with its status
#     --summary=FILE     with --wait: the figures of its report (summary.json), which are on the volume, to this file here
#     --delete           delete all of the run but its volume and PostgreSQL's disk
#     --dry_run          print the objects and the commands, change nothing
#
# Needs kubectl with a cluster as its current context, and JobSet in it (https://jobset.sigs.k8s.io).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/common.sh

declare -A option=([name]="" [image]="" [claim]="" [slice]="" [workers]=4 [slots]=8 [spot]=false [secret]="" [storage]="20Gi"
  [wait]=false [summary]="" [delete]=false)
parse_options "$@"
required_options name
check_name
name="${option[name]}"
need kubectl "https://kubernetes.io/docs/tasks/tools"
has() { kubectl get "$@" >/dev/null 2>&1; }
if command -v kubectl >/dev/null; then
  if ! kubectl cluster-info >/dev/null 2>&1; then
    lack "no cluster answers kubectl: gcloud container clusters get-credentials CLUSTER"
  else
    has crd jobsets.jobset.x-k8s.io || lack "the cluster has no JobSet: install it, see https://jobset.sigs.k8s.io"
    [ -z "${option[claim]}" ] || has persistentvolumeclaim "${option[claim]}" ||
      lack "the cluster has no PersistentVolumeClaim ${option[claim]} (--claim)"
    [ -z "${option[secret]}" ] || has secret "${option[secret]}" || lack "the cluster has no Secret ${option[secret]} (--secret)"
  fi
fi
if [ "${option[delete]}" = true ]; then
  check_prerequisites
  perform kubectl delete "jobset/$name" "deployment/$name-worker" "statefulset/$name-queue" "service/$name-queue" \
    "job/$name-roles" --ignore-not-found
  exit
fi
required_options image claim
read_config plan.slice
slice="${option[slice]:-${config[plan.slice]}}"
[ -n "$slice" ] || fail "no slice is named: set --slice=v5e-16, or config.plan.slice"
check_prerequisites

arguments=("--name=$name" "--slice=$slice" "--image=${option[image]}" "--claim=${option[claim]}" "--workers=${option[workers]}"
  "--slots=${option[slots]}" "--environment=${option[secret]}" "--storage=${option[storage]}")
[ "${option[spot]}" = false ] || arguments+=(--spot)
manifests="$(mktemp)"
trap 'rm -f "$manifests"' EXIT
"$(config_python)" launch/gke/manifests.py "${arguments[@]}" -- "${settings[@]}" >"$manifests"

# The roles' passwords are made once and stay: they are in the database.
make_secret() {
  (
    umask 077
    folder="$(mktemp -d)"
    for role in TRAINER WORKER; do
      od -An -N 24 -tx1 /dev/urandom | tr -d ' \n' >"$folder/${role}_PASSWORD"
    done
    kubectl create secret generic "$name-queue" "--from-file=$folder" && rm -r "$folder"
  )
}
if dry; then
  say "unless it is there, a Secret $name-queue with new passwords; then"
  cat "$manifests"
else
  has secret "$name-queue" || make_secret
fi
perform kubectl apply "--filename=$manifests"
if [ "${option[wait]}" = true ]; then
  state() { perform kubectl get "jobset/$name" "--output=jsonpath={.status.terminalState}"; }
  # Workers see the volume, and are there until the end.
  read_summary() { perform kubectl exec "deployment/$name-worker" -- cat "/runs/$name/report/summary.json"; }
  remove_workers() { perform kubectl delete "deployment/$name-worker" --ignore-not-found; }
  if dry; then
    say "until the trainer is done:"
    state
    say "then:"
    [ -z "${option[summary]}" ] || read_summary
    remove_workers
    exit
  fi
  until ended="$(state)" && [ -n "$ended" ]; do sleep "${MLAGENT_RETRY_SECONDS:-30}"; done
  if [ -n "${option[summary]}" ] && [ "$ended" = Completed ]; then
    mkdir -p "$(dirname "${option[summary]}")"
    if read_summary >"${option[summary]}.partial"; then
      mv "${option[summary]}.partial" "${option[summary]}"
    else
      rm -f "${option[summary]}.partial"
      say "no worker gave /runs/$name/report/summary.json: ${option[summary]} is not written"
    fi
  fi
  remove_workers >/dev/null
  [ "$ended" = Completed ] || fail "the trainer ended: $ended; kubectl logs --selector=app.kubernetes.io/instance=$name"
fi
dry || say "its log: kubectl logs --follow --selector=app.kubernetes.io/instance=$name,mlagent/part=trainer"
