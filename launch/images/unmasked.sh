#!/usr/bin/env bash
# In a container: runs a program that makes sandboxes with bubblewrap, which mount a /proc of their own. The kernel allows
# that only where nothing covers the container's own: what the engine put over it is taken away, and then the capability
# that it takes is given up for good.
#
#   launch/images/unmasked.sh PROGRAM ARGUMENT ...    needs CAP_SYS_ADMIN, and no seccomp or AppArmor profile
set -euo pipefail
covers="$(cut -d ' ' -f 5 /proc/self/mountinfo | grep '^/proc/' || true)"
for cover in $covers; do
  umount "$cover"
done
exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$@"
