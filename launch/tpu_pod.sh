#!/usr/bin/env bash
# A run on a TPU slice: make it or use the one there is, install, run on every host, show the logs, and go on after
# pre-emption until the run is done.
#
#   launch/tpu_pod.sh --name=NAME --zone=ZONE --config=FILE --workdir=DIR [--config.FIELD=VALUE ...]
#
#     --workdir=DIR          must outlive the slice: gs://BUCKET/..., or a folder under /mnt/mlagent with --nfs
#     --nfs=SERVER:/EXPORT   mount this file system at /mnt/mlagent on every host
#     --project=ID           default: gcloud's
#     --slice=NAME           for example v5e-16; default: config.plan.slice
#     --runtime=VERSION      of the TPU's software; default: the one for its generation
#     --spot                 a slice that may be taken back at any time, for less
#     --environment=A,B      variables of this shell that the trainer gets (PGPASSWORD, HF_TOKEN ...)
#     --delete               delete the slice when the run is done
#     --dry_run              print the commands, change nothing
#
# Needs gcloud with an account, a queue that the slice reaches (config.workers.queue), and workers: launch/workers.sh.
# Interrupted here, the run goes on; the same command shows its log again. Stop it with
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='kill $(cat mlagent/run/pid)'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/common.sh

declare -A option=([name]="" [zone]="" [project]="" [workdir]="" [slice]="" [runtime]="" [nfs]="" [spot]=false
  [environment]="" [delete]=false)
parse_options "$@"
required_options name zone workdir
read_config plan.slice workers.queue workers.slots tasks.folder
slice="${option[slice]:-${config[plan.slice]}}"

case "$slice" in
  v5e-*) type="v5litepod-${slice#v5e-}" runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) type="$slice" runtime=v2-alpha-tpuv5 ;;
  v6e-*) type="$slice" runtime=v2-alpha-tpuv6e ;;
  "") fail "no slice is named: set --slice=v5e-16, or config.plan.slice" ;;
  *) fail "slice '$slice' is no TPU slice: v5e-N, v5p-N or v6e-N" ;;
esac
runtime="${option[runtime]:-$runtime}"

need gcloud "https://cloud.google.com/sdk/docs/install"
need git "the slice gets the tracked files of this checkout"
case "${option[workdir]}" in
  gs://*) [ -n "${config[tasks.folder]}" ] || lack "config.tasks.folder is empty: with a workdir in a bucket, tasks need a folder on the hosts" ;;
  /mnt/mlagent/*) [ -n "${option[nfs]}" ] || lack "--workdir is ${option[workdir]}, and no --nfs=SERVER:/EXPORT is mounted there" ;;
  *) lack "--workdir is '${option[workdir]}': a slice's own disk goes with it; use gs://BUCKET/..., or --nfs and /mnt/mlagent/..." ;;
esac
[ "${config[workers.slots]}" != 0 ] || check_queue_of_many_hosts
if command -v gcloud >/dev/null && [ -z "$(gcloud config get-value account 2>/dev/null)" ]; then
  lack "gcloud has no account: gcloud auth login"
fi
project="${option[project]:-$(gcloud config get-value project 2>/dev/null || true)}"
[ -n "$project" ] || lack "no project: --project=ID, or gcloud config set project ID"
check_prerequisites

tpu=(gcloud compute tpus tpu-vm)
place=("${option[name]}" "--zone=${option[zone]}" "--project=${project:-PROJECT}")
create=("${tpu[@]}" create "${place[@]}" "--accelerator-type=$type" "--version=$runtime")
[ "${option[spot]}" = false ] || create+=(--spot)
remote="tar -xzf mlagent.tgz --one-top-level=mlagent && mkdir -p mlagent/run && install -m 600 mlagent.environment mlagent/run/environment"
if [ -n "${option[nfs]}" ]; then
  remote+=" && { mountpoint -q /mnt/mlagent || { sudo apt-get install -y -qq nfs-common >/dev/null && sudo mkdir -p /mnt/mlagent"
  remote+=" && sudo mount -t nfs $(quote "${option[nfs]}") /mnt/mlagent && sudo chmod 1777 /mnt/mlagent; }; }"
fi
run="cd mlagent && launch/host.sh tpu,postgres,gcs $(quote "${settings[@]}" "--workdir=${option[workdir]}")"

on_all_hosts() { perform "${tpu[@]}" ssh "${place[@]}" --worker=all "--command=$1"; }

state() { "${tpu[@]}" describe "${place[@]}" '--format=value(state)' 2>/dev/null || true; }

provide_slice() {
  if dry; then
    say "unless it is there:"
    perform "${create[@]}"
    return
  fi
  local now
  while now="$(state)" && [ "$now" != READY ]; do
    case "$now" in
      "")
        say "making $type ${option[name]}"
        "${create[@]}" || { say "no slice yet; again in ${MLAGENT_RETRY_SECONDS:-60} s"; sleep "${MLAGENT_RETRY_SECONDS:-60}"; }
        ;;
      CREATING | STARTING | RESTARTING | REPAIRING) sleep "${MLAGENT_RETRY_SECONDS:-60}" ;;
      *)
        say "the slice is $now: deleting it, to make it anew"
        "${tpu[@]}" delete "${place[@]}" --quiet || true
        ;;
    esac
  done
}

install_and_run() {
  perform "${tpu[@]}" scp "$bundle/mlagent.tgz" "$bundle/mlagent.environment" "${option[name]}:" "${place[@]:1}" --worker=all &&
    on_all_hosts "$remote" && on_all_hosts "$run"
}

bundle="$(mktemp -d)"
trap 'rm -rf "$bundle"' EXIT
perform_piped git ls-files '|' tar -czf "$bundle/mlagent.tgz" --files-from=-
dry && say "a file $bundle/mlagent.environment with ${option[environment]:-nothing}; then"
write_environment "$bundle/mlagent.environment"
failures=0
while true; do
  provide_slice
  install_and_run && break
  if [ "$(state)" != READY ]; then
    say "the slice was taken back; the run goes on when there is another"
    failures=0
    continue
  fi
  # Read once: the next try may end before it has a status of its own.
  status="$("${tpu[@]}" ssh "${place[@]}" --worker=0 --command='cat mlagent/run/status && rm mlagent/run/status' 2>/dev/null || true)"
  case "$status" in
    "$PREEMPTED") failures=0 && say "the trainer was told to stop and has saved; starting it again" ;;
    "") failures=$((failures + 1)) && say "the connection was lost, or a host failed; going on" ;;
    *) fail "the trainer ended with status $status; its log is above, and in mlagent/run/log on every host" ;;
  esac
  [ "$failures" -lt 5 ] || fail "the run failed $failures times in a row without a status: see mlagent/run/log on every host"
  sleep "${MLAGENT_RETRY_SECONDS:-5}"
done
if [ "${option[delete]}" = true ]; then
  perform "${tpu[@]}" delete "${place[@]}" --quiet
else
  dry || say "done; the slice still costs: ${tpu[*]} delete ${place[*]}"
fi
