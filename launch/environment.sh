# shellcheck shell=bash
# Sourced by launchers and tests/run.sh: a virtual environment with pinned versions, and a sandbox.
#
#   make_environment EXTRAS     EXTRAS as in `pip install .[EXTRAS]`
#   provide_sandbox             bubblewrap, where no container engine answers
#
# MLAGENT_VENV names the virtual environment (default: .venv); PYTHON the interpreter to make it with.

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

is_debian_root() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

apt_install() {
  say "installing $* (apt)"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null 2>&1 && return
  as_root apt-get update -qq >/dev/null &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "Python 3.11 or later is needed; set PYTHON=/path/to/python3.11"
}

make_environment() {
  local venv="${MLAGENT_VENV:-.venv}" python versions stamp
  if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python="$(find_python)"
    say "making the virtual environment $venv with $("$python" --version)"
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
      rm -rf "$venv"
      is_debian_root || fail "$python cannot make virtual environments: install python3-venv (apt-get install python3-venv)"
      apt_install python3-venv
      "$python" -m venv "$venv"
    fi
  fi
  # Installing takes minutes only when what is to be installed has changed.
  versions="$(cat setup.py constraints.txt | cksum)"
  grep -qF "$versions" "$venv/installed" 2>/dev/null || rm -f "$venv/installed"
  stamp="$1 $versions"
  if ! grep -qxF "$stamp" "$venv/installed" 2>/dev/null; then
    say "installing the package and its pinned dependencies (some minutes)"
    # Byte-compiled on purpose: every process would compile them anew where PYTHONDONTWRITEBYTECODE is set.
    env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      -c constraints.txt -e ".[$1]"
    printf '%s\n' "$stamp" >>"$venv/installed"
  fi
  PATH="$(cd "$venv/bin" && pwd):$PATH"
  export PATH
}

provide_sandbox() {
  if command -v bwrap >/dev/null || docker info >/dev/null 2>&1; then
    return
  fi
  is_debian_root || fail "no sandbox: start a Docker engine, or install bubblewrap (sudo apt-get install bubblewrap)"
  apt_install bubblewrap
}
