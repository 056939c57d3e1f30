#!/usr/bin/env bash
# In a container: the queue's PostgreSQL, which runs as the user postgres. On the first start it makes the database `mlagent` with
# the roles `trainer`, which owns it, and `worker`.
#
#   TRAINER_PASSWORD, WORKER_PASSWORD    of the roles
#   QUEUE_ADDRESS, QUEUE_PORT            to listen at; default: all, 5432
#   QUEUE_DATA                           on a volume; default: /var/lib/mlagent-queue/data
set -euo pipefail
data="${QUEUE_DATA:-/var/lib/mlagent-queue/data}"
if [ "$(id -u)" = 0 ]; then
  install -d -o postgres -g postgres "$(dirname "$data")"
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
programs="$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)"
PATH="$programs:$PATH"

if [ ! -s "$data/PG_VERSION" ]; then
  : "${TRAINER_PASSWORD:?}" "${WORKER_PASSWORD:?}"
  rm -rf "$data.partial"
  initdb --pgdata="$data.partial" --username=postgres --encoding=UTF8 --locale=C --auth-local=trust --auth-host=scram-sha-256 >/dev/null
  echo "host all all all scram-sha-256" >>"$data.partial/pg_hba.conf"
  pg_ctl --pgdata="$data.partial" --wait --silent --log="$data.partial/first.log" \
    --options="-c listen_addresses= -c unix_socket_directories=$data.partial" start
  psql --quiet --host="$data.partial" --username=postgres --set=ON_ERROR_STOP=1 <<'SQL'
\set trainer `printenv TRAINER_PASSWORD`
\set worker `printenv WORKER_PASSWORD`
CREATE ROLE trainer LOGIN PASSWORD :'trainer';
CREATE ROLE worker LOGIN PASSWORD :'worker';
CREATE DATABASE mlagent OWNER trainer;
SQL
  pg_ctl --pgdata="$data.partial" --wait --silent --mode=fast stop
  mv "$data.partial" "$data"
fi
exec postgres -D "$data" -c listen_addresses="${QUEUE_ADDRESS:-*}" -c port="${QUEUE_PORT:-5432}" \
  -c unix_socket_directories="$data" -c max_connections=400
