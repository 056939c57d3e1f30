# Sourced by the launchers: options, the config, prerequisites, dry runs.
#
#   declare -A option=([name]=default ...)     the launcher's own, given as --name=value (--name alone: true)
#   parse_options "$@"                         the config and its overrides go to the array `settings`
#   read_config FIELD ...                      checks the config; values go to the array `config`
#   need PROGRAM REMEDY / lack WHAT            a missing prerequisite: fails, or is named in a dry run
#   perform COMMAND ...                        runs it, or prints it in a dry run (perform_piped: of two)
#
# Every launcher takes --dry_run, which changes nothing anywhere.
# shellcheck shell=bash

[ "${BASH_VERSINFO[0]}" -ge 4 ] || {
  printf 'error: bash %s is too old for the launchers: install bash 4 or later (macOS: brew install bash)\n' "$BASH_VERSION" >&2
  exit 1
}
. launch/environment.sh

# shellcheck disable=SC2034 # of those who source this
PREEMPTED=75
# The trainer's exit status after SIGTERM: it has saved, and the same command goes on (mlagent_jax/runtime/interruption.py).

declare -a settings=()
declare -A config=()
declare -a absent=()

parse_options() {
  local argument name
  # shellcheck disable=SC2154 # a key, not a variable
  option[dry_run]=false
  for argument in "$@"; do
    case "$argument" in
      --help | -h)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "launch/${0##*/}"
        exit 0
        ;;
      --config=* | --config.*=*) settings+=("$argument") ;;
      --*)
        name="${argument#--}"
        name="${name%%=*}"
        [ -n "${option[$name]+known}" ] ||
          fail "unknown option $argument: $0 takes --config, --config.FIELD=VALUE, $(known_options)"
        # shellcheck disable=SC2004 # a key, not arithmetic
        case "$argument" in *=*) option[$name]="${argument#*=}" ;; *) option[$name]=true ;; esac
        ;;
      *) fail "unexpected argument '$argument': options are written --name=value" ;;
    esac
  done
}

known_options() { printf '%s\n' "${!option[@]}" | sort | sed 's/^/--/' | paste -sd' '; }

dry() { [ "${option[dry_run]}" = true ]; }

perform() {
  if dry; then
    printf '%s\n' "$(quote "$@")"
  else
    "$@"
  fi
}

# The same of two: COMMAND ... '|' COMMAND ...
perform_piped() {
  local first=()
  while [ "$1" != '|' ]; do
    first+=("$1")
    shift
  done
  shift
  if dry; then
    printf '%s | %s\n' "$(quote "${first[@]}")" "$(quote "$@")"
  else
    "${first[@]}" | "$@"
  fi
}

quote() {
  local word words=""
  for word in "$@"; do
    case "$word" in
      "" | *[!A-Za-z0-9_./:=@%+,-]*) words+=" '${word//\'/\'\\\'\'}'" ;;
      *) words+=" $word" ;;
    esac
  done
  printf '%s' "${words# }"
}

lack() { if dry; then say "missing here: $*"; else absent+=("$*"); fi; }

need() { command -v "$1" >/dev/null || lack "$1 is not installed: $2"; }

# All that is missing, at once, before anything is done.
check_prerequisites() {
  [ "${#absent[@]}" = 0 ] || fail "$(printf '%s\n' "${absent[@]}")"
}

# Names of runs become names of containers, jobs and folders.
check_name() {
  [[ "${option[name]}" =~ ^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "--name is '${option[name]}': small letters, digits and dashes, at most 40, for example run-1"
}

required_options() {
  local name
  for name in "$@"; do
    [ -n "${option[$name]}" ] || fail "--$name is missing; $0 --help says what it takes"
  done
}

config_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python "${MLAGENT_VENV:-.venv}/bin/python" python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import absl, docker, ml_collections' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "no Python here reads the config: pip install '.[launch]', or set PYTHON to one that has it"
}

read_config() {
  local python lines field
  python="$(config_python)"
  lines="$("$python" launch/settings.py "${settings[@]}" "$@")" || exit 1
  for field in "$@"; do
    IFS= read -r "config[$field]" || true
  done <<<"$lines"
}

# A file of NAME=value lines, for the variables that --environment names; readable by its owner alone.
write_environment() {
  local path="$1" name
  (umask 077 && : >"$path")
  for name in ${option[environment]//,/ }; do
    [ -n "${!name+set}" ] || fail "--environment names $name, which is not set here"
    printf 'export %s=%s\n' "$name" "$(quote "${!name}")" >>"$path"
  done
}

check_queue_of_many_hosts() {
  case "${config[workers.queue]}" in
    postgresql://*) ;;
    *) lack "config.workers.queue is '${config[workers.queue]}': workers on other hosts need postgresql://USER@HOST/DATABASE" ;;
  esac
  case "${config[workers.queue]}" in
    *@localhost* | *//localhost* | *@127.0.0.1* | *//127.0.0.1*)
      lack "config.workers.queue is ${config[workers.queue]}: other hosts do not reach this one by that name" ;;
  esac
}
