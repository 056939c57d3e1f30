"""Which file systems several hosts share: SQLite's locks do not hold there, and data is lost."""

from __future__ import annotations

from pathlib import Path

import psutil

_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "vboxsf", "virtiofs"}
)
_NETWORK_FUSE = frozenset({"gcsfuse", "glusterfs", "juicefs", "mount-s3", "rclone", "s3fs", "sshfs"})


def file_system_of(path: Path) -> str:
    """Type of the file system that `path` lies on, as the host names it; empty where it does not say."""
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[parent] for parent in (path, *path.parents) if parent in mounts), "")


def network_file_system(path: Path) -> str:
    """Type of the network file system that `path` lies on, whether it exists or not; empty where it is local."""
    kind = file_system_of(path.resolve())
    return kind if kind in _NETWORK or kind.removeprefix("fuse.") in _NETWORK_FUSE else ""
