"""Shared libraries of a root file system, copied to where its programs and extension modules look for them.

`environments.sandbox.rootfs.assemble` calls `install` after everything else. It needs no chroot, ldconfig or privilege:
every library goes to the one directory that the host's own dynamic loader searches by default.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

_RESOLVED = re.compile(r"^\s+(?P<name>\S+)(?: => (?P<path>/\S+))? \(0x[0-9a-f]+\)$")
_MISSING = re.compile(r"^\s+(?P<name>\S+) => not found$")
_BATCH = 64


class ClosureError(RuntimeError):
    """A shared library that a program of the root needs is missing on this host; the message names it."""


def elf_files(root: Path) -> list[Path]:
    """Return the regular files under `root` that start with the ELF magic."""

    def is_elf(path: Path) -> bool:
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF"

    candidates = [*root.rglob("*.so"), *root.rglob("*.so.*"), *root.glob("usr/local/bin/*")]
    return sorted({path for path in candidates if is_elf(path)})


def needed(files: Iterable[Path]) -> dict[str, Path]:
    """Return name and path on this host of every library that `files` load; the dynamic loader by its absolute name.

    A library that is itself one of `files` is not missing: wheels bundle libraries that the loading module points to.

    Raises:
      ClosureError: the host's loader does not find a library.
    """
    libraries: dict[str, Path] = {}
    files = list(files)
    bundled = {path.name for path in files}
    paths = [str(path) for path in files]
    for start in range(0, len(paths), _BATCH):
        # ldd uses the host's own loader, which knows RPATH, $ORIGIN and ld.so.cache; all inputs are trusted files.
        batch = ["ldd", *paths[start : start + _BATCH]]
        listing = subprocess.run(batch, capture_output=True, text=True, check=False).stdout  # noqa: S603
        for line in listing.splitlines():
            missing = _MISSING.match(line)
            if missing and missing["name"] not in bundled:
                raise ClosureError(
                    f"the dynamic loader does not find {missing['name']}, which the Python environment needs: "
                    "install the package that provides it"
                )
            if match := _RESOLVED.match(line):
                name = match["name"]
                if match["path"]:
                    libraries.setdefault(name, Path(match["path"]))
                elif name.startswith("/"):
                    libraries.setdefault(name, Path(name))
    return libraries


def install(root: Path, originals: Iterable[Path]) -> None:
    """Copy into `root` the libraries that its own ELF files, and their `originals` on the host, load.

    Args:
      root: the root file system.
      originals: interpreter and standard-library extensions at their original location, where a relative RPATH still
        leads to the libraries they ship with.

    Raises:
      ClosureError: a library is missing on this host.
    """
    libraries = needed(originals) | needed(elf_files(root / "usr/local/lib"))
    if "libc.so.6" not in libraries:
        raise ClosureError("ldd does not name libc.so.6: this host's C library is not glibc, which the wheels need")
    directory = libraries["libc.so.6"].parent
    # A merged /usr: the short names are links, as on the host, so that both spellings lead to the same files.
    for name in ("lib", "lib64", "bin", "sbin"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for name, source in libraries.items():
        if source.is_relative_to(root):
            continue  # bundled in a wheel beside the module that loads it
        target = root / (name.lstrip("/") if name.startswith("/") else (directory / name).relative_to("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(source, target)
            target.chmod(0o755)
