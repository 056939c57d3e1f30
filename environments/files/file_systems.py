"""Detection of network file systems: SQLite's locks fail on them, and data is lost."""

from __future__ import annotations

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
