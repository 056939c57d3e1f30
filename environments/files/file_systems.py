"""The host's own cache folder, and the detection of network file systems (SQLite's locks fail there: data is lost)."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "vboxsf", "virtiofs"}
)
_NETWORK_FUSE = frozenset({"gcsfuse", "glusterfs", "juicefs", "mount-s3", "rclone", "s3fs", "sshfs"})


def file_system_of(path: Path) -> str:
    """Return the type of the file system of `path`, as the host names it; empty if unknown."""
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[parent] for parent in (path, *path.parents) if parent in mounts), "")


def network_file_system(path: Path) -> str:
    """Return the type of the network file system of `path`, which need not exist; empty if it is local."""
    kind = file_system_of(path.resolve())
    return kind if kind in _NETWORK or kind.removeprefix("fuse.") in _NETWORK_FUSE else ""


def cache_directory() -> Path:
    """Return the folder of roots and caches that all runs of this host share.

    `$MLAGENT_CACHE`, else /var/cache/mlagent-jax for root, else the user's XDG cache.

    Root's home is closed to others, and a sandbox runs as an unprivileged user even if the worker is root.
    """
    if chosen := os.environ.get("MLAGENT_CACHE"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/mlagent-jax")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "mlagent-jax"
