"""The locked Python environment of untrusted scripts: one lock file, one root file system, for every sandbox."""

from environments.sandbox.rootfs.assemble import RootFs, RootFsError, ensure_rootfs

__all__ = ["RootFs", "RootFsError", "ensure_rootfs"]
