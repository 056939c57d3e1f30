"""The agent's access to files, by the names that it gives.

Handlers (`vocabulary`) access the restored workspace only through `AgentFiles`, which checks the path that each name
resolves to. Nothing else runs in the workspace while an action is applied, so a path cannot change between check and
use. Earlier scripts may have left anything there: symbolic links, FIFOs, sparse files.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import glob
import os
import stat
from pathlib import Path, PurePosixPath

from environments.actions.errors import ActionError
from environments.files.hostile import HostileFileError, path_errors, read_regular
from environments.guest import tree

MAX_NAME = 200
"""Maximum length of a path that an agent writes, in characters."""
MAX_TEXT_BYTES = 1 << 20
"""Maximum size of a file that an action reads or writes as text."""


@dataclasses.dataclass(frozen=True)
class AgentFiles:
    """The workspace in `root`, with the task's `data` folder visible (read-only) as `data/`."""

    root: Path
    data: Path | None = None
    read_only: tuple[str, ...] = ()
    """Globs of workspace paths that the agent may not change."""
    shadows: tuple[str, ...] = ()
    """Globs of workspace paths that Python would import instead of a read-only module: see `shadows_of`."""

    def resolve(self, name: str) -> tuple[str, Path]:
        """Return the path inside the workspace that `name` resolves to, and its path on this host.

        Raises:
          ActionError: the path leaves the workspace, or `name` is not a valid name.
        """
        if not name or len(name) > MAX_NAME:
            raise ActionError(f"a file name has 1 to {MAX_NAME} characters, this one has {len(name)}.")
        if not name.isprintable():
            raise ActionError(f"the file name {name!r} holds control characters.")
        root = os.path.realpath(self.root)
        with path_errors(ActionError, f"cannot access file {name}."):
            real = os.path.realpath(os.path.join(root, name))
        # commonpath compares whole components: `/tmp/ws2` is not in `/tmp/ws`.
        if os.path.commonpath([root, real]) != root:
            raise ActionError(f"cannot access file {name} because it is not in the work directory.")
        inside = os.path.relpath(real, root)
        if self.data is not None and inside.split(os.sep)[0] == "data":
            public = os.path.realpath(self.data)
            real = os.path.realpath(os.path.join(public, os.path.relpath(inside, "data")))
            if os.path.commonpath([public, real]) != public:
                raise ActionError(f"cannot access file {name} because it is not in the work directory.")
        return inside, Path(real)

    def is_read_only(self, inside: str) -> bool:
        """Check whether a workspace path (as `resolve` returns it) or a parent of it is read-only."""
        return inside.split(os.sep)[0] == "data" or _matches(inside, self.read_only)

    def list(self, name: str) -> list[str]:
        """Return the names in a folder, sorted and without hidden ones, as `ls` does."""
        inside, real = self.resolve(name or ".")
        with path_errors(ActionError, f"Cannot list file in the {name} directory"):
            names = {entry for entry in os.listdir(real) if not entry.startswith(".")}
        if inside == "." and self.data is not None:
            names.add("data")
        return sorted(names)

    def exists(self, name: str) -> bool:
        """Check whether a regular file exists."""
        try:
            return stat.S_ISREG(os.lstat(self.resolve(name)[1]).st_mode)
        except OSError:
            return False

    def read(self, name: str) -> str:
        """Read a file as text.

        Raises:
          ActionError: no such regular file, too large, or not UTF-8.
        """
        data = self.read_bytes(name)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ActionError(f"cannot read file {name}: it is not UTF-8 text.") from error

    def read_bytes(self, name: str) -> bytes:
        """Read a regular file of at most `MAX_TEXT_BYTES`."""
        _, real = self.resolve(name)
        try:
            return read_regular(real, MAX_TEXT_BYTES)
        except HostileFileError as error:
            raise ActionError(f"cannot read file {name}: {error}") from error

    def check_writable(self, name: str) -> str:
        """Return the path inside the workspace of a file that the agent may write.

        Raises:
          ActionError: the agent may not write it.
        """
        inside, real = self.resolve(name)
        if self.is_read_only(inside):
            raise ActionError(f"cannot write file {name} because it is a read-only file.")
        if _matches(inside, self.shadows):
            raise ActionError(f"cannot write file {name}: Python would import it in place of a read-only module.")
        if why := tree.unfit(inside):
            raise ActionError(f"cannot write file {name}: it would lie {why}.")
        if os.path.lexists(real) and not self.exists(name):
            raise ActionError(f"cannot write file {name}: it is not a regular file.")
        return inside

    def write(self, name: str, content: str | bytes) -> None:
        """Replace or create a file and its parent folders.

        Raises:
          ActionError: read-only, outside the workspace, not a regular file, or too large.
        """
        self.check_writable(name)
        data = content.encode() if isinstance(content, str) else content
        if len(data) > MAX_TEXT_BYTES:
            raise ActionError(f"cannot write file {name}: its content is larger than {MAX_TEXT_BYTES} bytes.")
        _, real = self.resolve(name)
        with path_errors(ActionError, f"cannot write file {name}"):
            real.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(real, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(data)

    def remove(self, name: str) -> None:
        """Delete a file that `check_writable` allows."""
        self.check_writable(name)
        self.resolve(name)[1].unlink(missing_ok=True)


@functools.cache
def shadows_of(read_only: tuple[str, ...], env: Path) -> tuple[str, ...]:
    """Return globs of paths that Python would import instead of read-only modules, less those that the task has.

    A package and an extension module take precedence over `helper.py`, as does its byte code if marked unchecked. Any
    module takes precedence over a folder of its name that has read-only modules but no `__init__.py`.

    Args:
      read_only: paths of the task's read-only files.
      env: the task's starting workspace.
    """
    patterns = {"__pycache__", "*/__pycache__"}
    for path in map(PurePosixPath, read_only):
        if path.suffix == ".py":
            patterns |= {f"{glob.escape(str(path.with_suffix('')))}{end}" for end in ("", ".so", ".*.so")}
            for folder in path.parents[:-1]:
                if not (env / folder / "__init__.py").exists():
                    ends = (".py", ".so", ".*.so", "/__init__.py", "/__init__.so", "/__init__.*.so")
                    patterns |= {f"{glob.escape(str(folder))}{end}" for end in ends}
    return tuple(sorted(pattern for pattern in patterns if not any(env.glob(pattern))))


def _matches(inside: str, patterns: tuple[str, ...]) -> bool:
    """Check whether a glob matches the path or a parent of it."""
    parts = inside.split(os.sep)
    return any(
        fnmatch.fnmatchcase("/".join(parts[: count + 1]), pattern)
        for count in range(len(parts))
        for pattern in patterns
    )
