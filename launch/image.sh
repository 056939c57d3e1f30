#!/usr/bin/env bash
# Build the image that launch/compose.sh and launch/gke.sh run: trainer, workers and PostgreSQL.
#
#   launch/image.sh [--base=IMAGE] [--extras=LIST] [--tag=NAME]
#
#     --base=IMAGE     Debian with Python 3.11; default: python:3.11-slim-bookworm; `debootstrap`: made of Debian's
#                      packages, where no image registry can be reached (as root)
#     --extras=LIST    as in pip install '.[LIST]'; default: cpu,postgres. GPUs: cuda,postgres,gcs. TPUs: tpu,postgres,gcs
#     --tag=NAME       default: mlagent-jax:local; push it to a registry for other hosts
#     --wheels=DIR     where fetched wheels are kept, for the next build; default: build/wheels
#     --dry_run        print the commands, change nothing
#
# Needs a Docker engine, and a Python 3.11 with pip and a package index on this host (PYTHON names it).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/common.sh

declare -A option=([base]="python:3.11-slim-bookworm" [extras]="cpu,postgres" [tag]="mlagent-jax:local" [wheels]="build/wheels")
parse_options "$@"
base="${option[base]}"
need docker "install a Docker engine (Debian: apt-get install docker.io), or set DOCKER_HOST"
need git "the image gets the tracked files of this checkout"
if command -v docker >/dev/null && ! docker info >/dev/null 2>&1; then
  lack "no Docker engine answers: start it, or set DOCKER_HOST"
fi
python="$(find_python)"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
  lack "$python is $("$python" --version): wheels for the image are fetched by Python 3.11; set PYTHON"
"$python" -m pip --version >/dev/null 2>&1 || lack "$python has no pip: $python -m ensurepip"
if [ "$base" = debootstrap ]; then
  base=mlagent-jax-base:services
  need debootstrap "as root: apt-get install debootstrap"
  [ "$(id -u)" = 0 ] || lack "--base=debootstrap needs root"
fi
check_prerequisites

context="$(mktemp -d)"
trap 'rm -rf "$context"' EXIT

import_debian() {
  perform debootstrap --variant=minbase --include=python3,python3-venv,bubblewrap,postgresql,ca-certificates bookworm "$context/root"
  perform_piped tar -C "$context/root" --exclude=./dev --exclude=./proc --exclude=./sys --exclude=./var/cache \
    --exclude=./var/lib/apt -c . '|' docker import - "$base"
  perform rm -rf "$context/root"
}

if [ "${option[base]}" = debootstrap ] && ! docker image inspect "$base" >/dev/null 2>&1; then
  say "making the base image $base of Debian's packages"
  import_debian
fi
say "fetching wheels into ${option[wheels]}"
perform mkdir -p "${option[wheels]}"
perform "$python" -m pip wheel --quiet --disable-pip-version-check -c constraints.txt -w "${option[wheels]}" ".[${option[extras]}]"
perform "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "${option[wheels]}" \
  -r environments/sandbox/rootfs/requirements.lock pip
perform mkdir "$context/source"
perform_piped git ls-files -z '|' xargs -0 cp --parents -t "$context/source"
perform ln -s "$(realpath -m "${option[wheels]}")" "$context/wheels"
perform cp launch/images/Dockerfile "$context"
say "building ${option[tag]}"
network=default
[ "${option[base]}" != debootstrap ] || network=none
# As a stream, in which the link to the wheels is followed.
perform_piped tar -C "$context" --dereference -c Dockerfile source wheels '|' docker build --quiet "--network=$network" \
  "--build-arg=BASE=$base" "--build-arg=EXTRAS=${option[extras]}" "--tag=${option[tag]}" -
# What the builder leaves is of no use: the next build has another wheel of this package.
perform docker image prune --force --filter=label=mlagent-jax.builder=1
