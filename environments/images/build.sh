#!/usr/bin/env bash
# Builds the locked Python environment of the sandboxes: the root file system, and with --docker the image.
#
#   environments/images/build.sh [--docker]        PYTHON=... to choose the interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec "${PYTHON:-python3}" -m environments.images.build "$@"
