#!/usr/bin/env bash
# Builds the locked Python environment of the sandboxes: the root file system, and with --docker the image.
#
#   environments/sandbox/rootfs/build.sh [--docker]        of this host's Python (PYTHON=... to choose it)
#   environments/sandbox/rootfs/build.sh --base=auto       root and image from the Dockerfile, or from Debian's packages where
#                                                  no image registry answers; the same for hosts with other Pythons
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
exec "${PYTHON:-python3}" -m environments.sandbox.rootfs.build "$@"
