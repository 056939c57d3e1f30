#!/usr/bin/env bash
# Builds the locked Python environment of the sandboxes: the root file system, and with --docker the image.
#
#   environments/sandbox/rootfs/build.sh [--docker]        of this host's Python (PYTHON=... to choose it)
#
# Hosts with other Pythons run the same environment from a copy of the folder that this prints (docs/security.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
exec "${PYTHON:-python3}" -m environments.sandbox.rootfs.build "$@"
