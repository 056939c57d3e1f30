"""The locked Python environment that untrusted scripts run in: one lock file, one root file system, every sandbox."""

from environments.sandbox.rootfs.assemble import RootFs, RootFsError, ensure_rootfs

__all__ = ["RootFs", "RootFsError", "ensure_rootfs"]
