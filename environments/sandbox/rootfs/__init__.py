"""The locked Python environment that untrusted scripts run in: one lock file, one root file system, every sandbox."""

from environments.images.rootfs import RootFs, RootFsError, ensure_rootfs

__all__ = ["RootFs", "RootFsError", "ensure_rootfs"]
