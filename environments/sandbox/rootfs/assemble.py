"""The root file system of every sandbox, assembled from this host's interpreter and one lock file.

`ensure_rootfs()` returns a directory with a complete small system: the interpreter with its standard library, the
packages of `requirements.lock`, the shared libraries they load, and mount points. bubblewrap mounts it read-only as
`/`; `environments.sandbox.rootfs.build` imports the same directory as a Docker image. Nothing here needs root, an
image registry or a distribution's tools: pip fetches the wheels, everything else is copied from the running
interpreter.

The data that scikit-learn, networkx and Python bundle is deleted, because tasks are made from it: a script must not
look up hidden labels in the originals.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from environments.files.file_systems import cache_directory
from environments.sandbox.rootfs import closure

LOCK_FILE = Path(__file__).with_name("requirements.lock")
CHOICE = "MLAGENT_ENVIRONMENT"
"""Environment variable that selects another root for the sandboxes than that of this host's Python, by digest."""
VERSION = 2
"""Version of this builder, part of the digest: raise it whenever the same lock file gives another root."""

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
PREFIX = Path("usr/local")
"""Prefix of the interpreter inside the root; it finds its library relative to its own location."""
SITE_PACKAGES = PREFIX / "lib" / PYTHON / "site-packages"

_NOT_STDLIB = (
    "__pycache__",
    "config-*",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "sitecustomize.py",
    "test",
    "tests",
    "tkinter",
    "turtle*",
    "venv",
    "_test*",
    "_tkinter*",
    "_xx*",
    "xxlimited*",
)
"""Files never copied: unused by scripts, specific to the host, or (`pydoc_data`) the source of text tasks."""

BUNDLED_DATA = (
    "sklearn/datasets/data",
    "sklearn/datasets/descr",
    "sklearn/datasets/images",
    "networkx/generators/atlas.dat.gz",
    "networkx/generators/social.py",
)
"""Originals from which tasks are made, relative to site-packages. A Python module among them is emptied."""

_USERS = "root:x:0:0:root:/:/bin/false\nagent:x:1000:1000:agent:/tmp:/bin/false\n"
_GROUP = "root:x:0:\nagent:x:1000:\n"
_ETC = {
    "passwd": _USERS,
    "group": _GROUP,
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "resolv.conf": "",
    "hostname": "sandbox\n",
}
_LOCALE = Path("usr/lib/locale/C.utf8")
"""Locale of LANG in the sandbox: without these data `locale.setlocale(LC_ALL, "")` fails."""
MOUNT_POINTS = ("dev", "proc", "run", "sys", "tmp", "workspace", "workspace/data", "store", "opt/mlagent")


class RootFsError(RuntimeError):
    """The locked environment cannot be built here. The message says what is missing and the remedy."""


@dataclasses.dataclass(frozen=True)
class RootFs:
    """A built root file system."""

    path: Path
    digest: str
    """Identity of the environment: equal digests mean the same interpreter and packages."""

    @property
    def image(self) -> str:
        """Tag of the Docker image made of it."""
        return f"mlagent-jax-sandbox:{self.digest}"


def environment_digest() -> str:
    """Return the SHA-256 (first 16 hex digits) of lock file, interpreter version, machine type and builder version."""
    interpreter = (platform.python_implementation(), platform.python_version(), platform.machine())
    parts = (LOCK_FILE.read_text(encoding="utf-8"), *interpreter, str(VERSION))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def ensure_rootfs(progress: Callable[[str], None] = say) -> RootFs:
    """Return the root file system that sandboxes run: the one that `MLAGENT_ENVIRONMENT` selects, else this host's.

    The latter, made from this interpreter and the lock file, is built on the first call on a machine (under a minute).
    The
    build is atomic: a directory with this name is complete. Of concurrent processes one builds it.

    Raises:
      RootFsError: it cannot be built, is missing, or is not readable by an unprivileged user.
    """
    chosen = os.environ.get(CHOICE)
    digest = chosen or environment_digest()
    if not digest.isalnum():
        raise RootFsError(f"{CHOICE} is {digest!r}, which is no digest of an environment")
    folder = cache_directory() / "rootfs"
    path = folder / digest
    if chosen and not path.is_dir():
        raise RootFsError(
            f"{CHOICE} is {chosen!r}, and {folder} has no such root: copy the folder {chosen} there from the host that "
            "built it (environments/sandbox/rootfs/build.sh), or unset the variable to use this host's Python"
        )
    if not path.is_dir():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RootFsError(
                f"cannot write the cache {folder}: {error}; set MLAGENT_CACHE to another folder"
            ) from error
        with _only_builder(folder / f"{digest}.lock"):
            if not path.is_dir():
                _build_atomically(path, progress)
    _require_readable(path)
    return RootFs(path=path, digest=digest)


@contextmanager
def _only_builder(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _require_readable(path: Path) -> None:
    """Check that an unprivileged user can read the root: a worker that is root runs its sandbox as one."""
    if os.geteuid() != 0:
        return
    for folder in [path, *path.parents]:
        if folder.stat().st_mode & 0o005 != 0o005:
            raise RootFsError(
                f"{folder} is closed to other users, but the sandbox runs as an unprivileged one: "
                f"set MLAGENT_CACHE to a folder that is open to all, or chmod o+rx {folder}"
            )


def _build_atomically(path: Path, progress: Callable[[str], None]) -> None:
    for leftover in path.parent.glob(f"{path.name}.building-*"):  # left by a builder that died; we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=f"{path.name}.building-", dir=path.parent))
    try:
        _build(building, progress)
        building.chmod(0o755)
        building.rename(path)
    except (OSError, closure.ClosureError, subprocess.CalledProcessError) as error:
        raise RootFsError(f"cannot build the locked Python environment in {path.parent}: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    progress(f"locked Python environment: {path}")


def _build(root: Path, progress: Callable[[str], None]) -> None:
    progress("locked Python environment: copying the interpreter (1 of 4)")
    originals = _copy_interpreter(root)
    progress(f"locked Python environment: installing {LOCK_FILE.name} (2 of 4)")
    _install_packages(root / SITE_PACKAGES)
    progress("locked Python environment: copying shared libraries (3 of 4)")
    closure.install(root, originals)
    if (locale := Path("/") / _LOCALE).is_dir():
        shutil.copytree(locale, root / _LOCALE)
    _write_skeleton(root)
    progress("locked Python environment: compiling to byte code (4 of 4)")
    _compile(root)
    _open_to_all(root)


def _copy_interpreter(root: Path) -> list[Path]:
    """Copy the base interpreter (never the virtual environment's), and return the original paths of its ELF files."""
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    stdlib = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))
    target = root / PREFIX / "lib" / PYTHON
    shutil.copytree(stdlib, target, ignore=shutil.ignore_patterns(*_NOT_STDLIB), symlinks=False)
    dynload = Path(sysconfig.get_config_var("DESTSHARED") or stdlib / "lib-dynload")
    if dynload.is_dir() and not (target / "lib-dynload").is_dir():  # Fedora keeps it under lib64
        shutil.copytree(dynload, target / "lib-dynload", ignore=shutil.ignore_patterns(*_NOT_STDLIB))
    binaries = root / PREFIX / "bin"
    binaries.mkdir(parents=True)
    shutil.copy(executable, binaries / PYTHON)
    for name in ("python3", "python"):
        (binaries / name).symlink_to(PYTHON)
    copied = {path.name for path in (target / "lib-dynload").glob("*.so")}
    origin = stdlib / "lib-dynload" if (stdlib / "lib-dynload").is_dir() else dynload
    return [executable, *(path for path in origin.glob("*.so") if path.name in copied)]


def _install_packages(site_packages: Path) -> None:
    """Install exactly the lock file, as wheels, and delete tests and bundled data."""
    common = ["--target", str(site_packages), "--no-deps", "--only-binary", ":all:", "--requirement", str(LOCK_FILE)]
    if importlib.util.find_spec("pip"):
        quiet = ["--quiet", "--no-compile", "--no-warn-script-location", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "install", *quiet, *common]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable, *common]
    else:
        raise RootFsError(f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip`, or install uv")
    environment = {name: value for name, value in os.environ.items() if name not in ("PIP_USER", "PIP_TARGET")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise RootFsError(f"pip could not install {LOCK_FILE}:\n{done.stderr.strip()[-2000:]}")
    # Debian's site module looks for dist-packages.
    (site_packages.parent / "dist-packages").symlink_to(site_packages.name)
    shutil.rmtree(site_packages / "bin", ignore_errors=True)
    for tests in [path for path in site_packages.rglob("*") if path.name in ("tests", "test") and path.is_dir()]:
        shutil.rmtree(tests, ignore_errors=True)
    for name in BUNDLED_DATA:
        data = site_packages / name
        if data.is_dir():
            shutil.rmtree(data)
        elif data.suffix == ".py":
            data.write_text("__all__ = []\n", encoding="utf-8")
        else:
            data.unlink(missing_ok=True)


def _write_skeleton(root: Path) -> None:
    """Write /etc, and create the mount points."""
    (root / "etc").mkdir(exist_ok=True)
    for name, text in _ETC.items():
        (root / "etc" / name).write_text(text, encoding="utf-8")
    for name in MOUNT_POINTS:
        (root / name).mkdir(parents=True, exist_ok=True)


def _compile(root: Path) -> None:
    """Byte-compile ahead, without later checks: the root is read-only and its modification times mean nothing."""
    # Docker's import and a copy of the cache change times: only hash-based, unchecked byte code survives that.
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    command += ["-s", str(root), "-p", "/", str(root / PREFIX / "lib" / PYTHON)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPYCACHEPREFIX"}
    # The exit status counts templates that are not valid Python; the sandbox's probe detects imports that fail.
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)  # noqa: S603


def _open_to_all(root: Path) -> None:
    """Make everything readable by all and writable by its owner, without setuid bits, whatever the umask and source."""
    for folder, _, files in os.walk(root):
        os.chmod(folder, 0o755)  # noqa: S103
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)
