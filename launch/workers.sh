#!/usr/bin/env bash
# This CPU host joins a run: checks its sandbox, installs, builds the sandbox' environment, and starts a worker under
# systemd, which starts it again after a failure and after the host's own restart.
#
#   launch/workers.sh --config=FILE --tasks=DIR [--config.FIELD=VALUE ...]
#
#     --config=FILE       the trainer's, with the same overrides: queue, store and sandbox are read from it
#     --tasks=DIR         `tasks` of the run's workdir, or a copy of it
#     --role=NAME         the PostgreSQL role of workers, in place of the trainer's in config.workers.queue; default: worker
#     --slots=N           executions at once; default: one less than the host has cores
#     --environment=A,B   variables of this shell that the worker gets (PGPASSWORD, GOOGLE_APPLICATION_CREDENTIALS ...)
#     --name=NAME         of the unit, mlagent-NAME; default: worker. One host may work for several runs
#     --remove            stop the worker and remove the unit
#     --dry_run           print the commands, change nothing
#
# Needs systemd and sudo rights or root, and a Docker engine, or bubblewrap where config.workers.sandbox allows it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/common.sh

declare -A option=([tasks]="" [role]="worker" [slots]="" [environment]="" [name]="worker" [remove]=false)
parse_options "$@"
check_name
unit="mlagent-${option[name]}.service"
environment="/etc/mlagent/${option[name]}.environment"

need systemctl "workers run under systemd; without it start \`python -m environments.worker\` by hand (docs/worker_fleet.md)"
if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
  lack "sudo asks for a password: run this as root, or allow sudo for systemctl and install"
fi
root() { if [ "$(id -u)" = 0 ]; then perform "$@"; else perform sudo -n "$@"; fi; }

if [ "${option[remove]}" = true ]; then
  check_prerequisites
  root systemctl disable --now "$unit"
  root rm -f "/etc/systemd/system/$unit" "$environment"
  root systemctl daemon-reload
  exit
fi

required_options tasks
read_config workers.queue workers.store workers.sandbox
check_queue_of_many_hosts
[ -n "${config[workers.store]}" ] || lack "config.workers.store is empty: name a bucket, or a folder that trainer and workers share"
compgen -G "${option[tasks]}/*/task.json" >/dev/null || lack "--tasks is ${option[tasks]}: no prepared task is there"
sandbox="${config[workers.sandbox]}"
if docker info >/dev/null 2>&1; then
  [ "$sandbox" != auto ] || sandbox=docker
elif [ "$sandbox" = docker ]; then
  lack "no Docker engine answers, and config.workers.sandbox is docker: install one (Debian: apt-get install docker.io)"
else
  sandbox=bubblewrap
  need bwrap "the sandbox needs bubblewrap (Debian: apt-get install bubblewrap), or a Docker engine"
fi
python="$(find_python)"
check_prerequisites

slots="${option[slots]:-$(($(nproc) > 1 ? $(nproc) - 1 : 1))}"
queue="$(sed -E "s#^(postgresql://)([^@/]*@)?#\1${option[role]}@#" <<<"${config[workers.queue]}")"
venv="$(realpath -m "${MLAGENT_VENV:-.venv}")"
tasks="$(realpath -m "${option[tasks]}")"

say "installing for $python"
if dry; then
  perform "$python" -m venv "$venv"
  perform "$venv/bin/python" -m pip install -c constraints.txt -e '.[postgres,gcs]'
else
  make_environment postgres,gcs
fi
build=("$venv/bin/python" -m environments.sandbox.rootfs.build)
[ "$sandbox" != docker ] || build+=(--docker)
perform "${build[@]}"

files="$(mktemp -d)"
trap 'rm -rf "$files"' EXIT
write_environment "$files/environment"
sed -i 's/^export //' "$files/environment"
printf 'MLAGENT_QUEUE=%s\n' "$(quote "$queue")" >>"$files/environment"
cat >"$files/unit" <<UNIT
[Unit]
Description=Worker of an ML-Agent run
Wants=network-online.target
After=network-online.target docker.service

[Service]
User=$(id -un)
WorkingDirectory=$PWD
EnvironmentFile=$environment
ExecStart="$venv/bin/python" -m environments.worker "--tasks=$tasks" "--store=${config[workers.store]}" --slots=$slots --sandbox=$sandbox
Restart=always
RestartSec=5
# It drains on SIGTERM, for 25 s; what it started is killed when it is gone.
KillMode=mixed
TimeoutStopSec=60

[Install]
WantedBy=multi-user.target
UNIT
if dry; then
  say "the unit:"
  cat "$files/unit"
fi
root install -d -m 755 /etc/mlagent
root install -m 600 "$files/environment" "$environment"
root install -m 644 "$files/unit" "/etc/systemd/system/$unit"
root systemctl daemon-reload
root systemctl enable "$unit"
root systemctl restart "$unit"
dry || say "the worker runs: journalctl -u $unit -f"
