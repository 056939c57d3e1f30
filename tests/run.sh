#!/usr/bin/env bash
# Set-up and all tests.
#
#   tests/run.sh [PYTEST ARGUMENT ...]            for example: tests/run.sh -m "not slow"
#   tests/run.sh --full [PYTEST ARGUMENT ...]     all tests, where they try hostile things at length: 1,000 executions
#                                                 in each sandbox (else 60), a server with 300 clients for 10 minutes
#                                                 (else 9 for 2 seconds), 2,000 examples of any input (else 60)
#
# Where it is root on Debian, or CI is set (then with sudo), it installs and starts what tests need (a Docker engine,
# PostgreSQL, Chromium) for the time of the tests. On a person's own machine it uses what is there, installs nothing
# unasked, and says what it cannot run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

if [ "${1:-}" = --full ]; then
  shift
  export MLAGENT_TEST_EXECUTIONS=1000 MLAGENT_TEST_CLIENTS=300 MLAGENT_TEST_SECONDS=600 MLAGENT_TEST_EXAMPLES=2000
fi

may_install() { is_debian_root || { [ -n "${CI:-}" ] && command -v apt-get >/dev/null; }; }

make_environment cpu,postgres,test
may_install || provide_sandbox

scratch="$(mktemp -d)"
engine=""
cleanup() {
  if [ -n "$engine" ]; then
    as_root kill "$(cat "$scratch/docker.pid")" 2>/dev/null || true
    wait "$engine" 2>/dev/null || true
  fi
  as_root rm -rf "$scratch" 2>/dev/null || true
}
trap cleanup EXIT

if may_install; then
  command -v bwrap >/dev/null || apt_install bubblewrap
  command -v dockerd >/dev/null || apt_install docker.io
  command -v docker-compose >/dev/null || apt_install docker-compose
  ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || apt_install postgresql
  command -v chromium >/dev/null || apt_install chromium
  command -v shellcheck >/dev/null || apt_install shellcheck
  command -v ip >/dev/null || apt_install iproute2
  if ! docker info >/dev/null 2>&1; then
    export DOCKER_HOST="unix://$scratch/docker.sock"
    # Containers run without a network, so the engine needs no bridge.
    as_root dockerd --group "$(id -g)" --bridge=none --iptables=false --pidfile "$scratch/docker.pid" \
      --data-root "$scratch/docker" --exec-root "$scratch/docker-exec" -H "$DOCKER_HOST" >"$scratch/dockerd.log" 2>&1 &
    engine=$!
    for _ in $(seq 60); do
      docker info >/dev/null 2>&1 && break
      sleep 0.5
    done
    docker info >/dev/null 2>&1 || { tail -n 20 "$scratch/dockerd.log" >&2; fail "the Docker engine did not start"; }
  fi
else
  docker info >/dev/null 2>&1 || say "no Docker engine answers: tests marked docker are skipped"
  command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 ||
    say "PostgreSQL is not installed: tests marked postgres are skipped"
fi

# Tests with real weights: fetched where things may be installed, else used where they are.
if may_install; then fetch_smollm2 >/dev/null || say "SmolLM2 was not fetched: tests with real weights fail"; fi

ruff check .
# As what is installed is: every program of the tests would compile ours anew where PYTHONDONTWRITEBYTECODE is set. Not
# what sandboxes get copies of.
python -m compileall -q -x '/(guest|starter|paper)/' environments mlagent_jax
python -m pytest "$@"
