"""Build the locked environment from a base image instead of this host's interpreter: the same on every host.

    base image: pulled, or made of Debian's packages (debootstrap, import) where there is no image registry
      -> wheels of the lock file for its Python, fetched out here
      -> `Dockerfile`: assembles the root file system in a builder without a network; the image holds that root alone
      -> exported: the root for bubblewrap

Workers whose hosts have different Pythons run one environment in this way, and so take each other's jobs. The digest
that this gives is chosen by `MLAGENT_ENVIRONMENT` (see `rootfs.ensure_rootfs`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments.sandbox.rootfs.assemble import (
    LOCK_FILE,
    RootFs,
    RootFsError,
    build_once,
    environment_digest,
    say,
    write_skeleton,
)

if TYPE_CHECKING:
    import docker

AUTO, DEBOOTSTRAP = "auto", "debootstrap"
DEFAULT_IMAGE = "python:3.11-slim-bookworm"
SUITE = "bookworm"
_DEBIAN_IMAGE = f"mlagent-jax-base:{SUITE}"
_BUILDER_LABEL = "mlagent-jax.builder=1"
_ASK = (
    "import json, platform as p; print(json.dumps([p.python_implementation(), p.python_version(), p.machine(),"
    " p.libc_ver()[1]]))"
)
_OLDEST_GLIBC = 17
"""Minor version from which manylinux has tags of this form."""


@dataclasses.dataclass(frozen=True)
class Base:
    """A base image in the engine, and what it holds."""

    image: str
    origin: str
    """Its name in the environment's identity."""
    implementation: str
    python: str
    machine: str
    glibc: str

    @property
    def digest(self) -> str:
        return environment_digest(self.implementation, self.python, self.machine, origin=self.origin)


def build_from_base(client: docker.DockerClient, name: str, progress: Callable[[str], None] = say) -> RootFs:
    """Image and root file system from the base `name`: an image, `debootstrap`, or `auto` (the default image where it
    can be pulled, else debootstrap).

    Raises:
      RootFsError: the base, a wheel, or the engine is missing, or the build fails; the message has the remedy.
      docker.errors.DockerException: the engine failed.
    """
    import docker.errors

    base = _open(client, name, progress)
    image = f"mlagent-jax-sandbox:{base.digest}"
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        _build_image(client, base, image, progress)
    return build_once(base.digest, lambda root, _: _export(client, image, root), progress)


def _open(client: docker.DockerClient, name: str, progress: Callable[[str], None]) -> Base:
    import docker.errors

    image = {AUTO: DEFAULT_IMAGE, DEBOOTSTRAP: _DEBIAN_IMAGE}.get(name, name)
    origin = f"debian {SUITE}" if name == DEBOOTSTRAP else image
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        if name == DEBOOTSTRAP:
            _import_debian(client, progress)
        else:
            try:
                progress(f"base image {image}: pulling it")
                client.images.pull(image)
            except docker.errors.APIError as error:
                if name != AUTO:
                    raise RootFsError(
                        f"no base image {image!r} in the engine, and it cannot be pulled ({error}): "
                        "use --base=debootstrap"
                    ) from error
                progress(f"no image registry answers ({error}); making a base of Debian's packages")
                return _open(client, DEBOOTSTRAP, progress)
    try:
        said = client.containers.run(image, ["python3", "-c", _ASK], network_mode="none", remove=True)
        implementation, python, machine, glibc = _four_texts(said)
    except (docker.errors.ContainerError, docker.errors.APIError, ValueError) as error:
        raise RootFsError(f"the base image {image!r} runs no python3 with glibc ({error}): choose another") from error
    return Base(image, origin, implementation, python, machine, glibc)


def _four_texts(said: bytes) -> list[str]:
    """The four strings that `_ASK` prints.

    Raises:
      ValueError: anything else.
    """
    values = json.loads(said)
    if not (isinstance(values, list) and len(values) == 4 and all(isinstance(v, str) and v for v in values)):
        raise ValueError(f"it answers {said[:200]!r}")
    return values


def _import_debian(client: docker.DockerClient, progress: Callable[[str], None]) -> None:
    """A base image of Debian's packages: needs root, the program debootstrap and a Debian mirror."""
    program = shutil.which("debootstrap") or shutil.which("debootstrap", path="/usr/sbin:/sbin")
    if program is None or os.geteuid() != 0:
        raise RootFsError(
            "a base of Debian's packages takes root and debootstrap: run as root after `apt-get install debootstrap`, "
            "or name a base image that the engine has (--base=IMAGE)"
        )
    with tempfile.TemporaryDirectory(prefix="mlagent-debian-") as folder:
        progress(f"base image {_DEBIAN_IMAGE}: debootstrap {SUITE}")
        root = Path(folder, "root")
        command = [program, "--variant=minbase", "--include=python3", SUITE, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
        if done.returncode != 0:
            raise RootFsError(f"debootstrap failed: {(done.stdout + done.stderr).strip()[-1000:]}")
        repository, _, tag = _DEBIAN_IMAGE.partition(":")
        with packed(root, leave_out=("dev", "proc", "sys", "var/cache", "var/lib/apt")) as stream:
            pieces = iter(lambda: stream.read(1 << 20), b"")  # of a file with a length, the SDK makes a broken request
            client.api.import_image_from_stream(pieces, repository=repository, tag=tag)


@contextlib.contextmanager
def packed(root: Path, leave_out: tuple[str, ...] = ()) -> Iterator[Any]:
    """A temporary file with the tree under `root` as tar."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(root, arcname=".", filter=lambda member: _kept(member, leave_out))
        file.seek(0)
        yield file


def _kept(member: tarfile.TarInfo, leave_out: tuple[str, ...]) -> tarfile.TarInfo | None:
    name = member.name.removeprefix("./")
    return None if any(name.startswith(f"{folder}/") for folder in leave_out) else member


def _build_image(client: docker.DockerClient, base: Base, image: str, progress: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="mlagent-image-") as folder:
        context = Path(folder)
        progress(f"image {image}: fetching wheels for Python {base.python}")
        _fetch_wheels(context / "wheels", base)
        here = Path(__file__).parent
        (context / "environments/sandbox/rootfs").mkdir(parents=True)
        for source in (*here.glob("*.py"), LOCK_FILE, here / "Dockerfile"):
            shutil.copy(source, context / "environments/sandbox/rootfs" / source.name)
        progress(f"image {image}: building from {base.image}")
        with packed(context) as stream:
            said = client.api.build(
                fileobj=stream,
                custom_context=True,
                dockerfile="environments/sandbox/rootfs/Dockerfile",
                tag=image,
                buildargs={"BASE": base.image, "PIP_NO_INDEX": "1"},
                network_mode="none",
                rm=True,
                forcerm=True,
                decode=True,
            )
            lines = [line.get("stream") or line.get("error") or "" for line in said]
    client.images.prune(filters={"dangling": True, "label": _BUILDER_LABEL})
    if not any(line.startswith("Successfully tagged") for line in lines):
        raise RootFsError(f"the image was not built: {''.join(lines).strip()[-2000:]}")


def _fetch_wheels(folder: Path, base: Base) -> None:
    """Wheels of the lock file for the Python of `base`, and one of pip, which a base need not have."""
    if not importlib.util.find_spec("pip"):
        raise RootFsError(f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip`")
    newest = int(base.glibc.split(".")[1])
    platforms = [f"manylinux_2_{minor}_{base.machine}" for minor in range(newest, _OLDEST_GLIBC - 1, -1)]
    version = "".join(base.python.split(".")[:2])
    target = ["--python-version", base.python, "--implementation", "cp", "--abi", f"cp{version}", "--abi", "abi3"]
    target += ["--abi", "none", *(f"--platform={name}" for name in (*platforms, f"manylinux2014_{base.machine}"))]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), *target, "--requirement", str(LOCK_FILE), "pip"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode != 0:
        raise RootFsError(f"pip could not fetch {LOCK_FILE.name}:\n{done.stderr.strip()[-2000:]}")


def _export(client: docker.DockerClient, image: str, root: Path) -> None:
    """The files of `image` under `root`, as they were before the engine added its own to a container."""
    container = client.containers.create(image, ["/usr/local/bin/python3"])
    try:
        with tempfile.TemporaryFile() as file:
            for chunk in container.export():
                file.write(chunk)
            file.seek(0)
            tar = shutil.which("tar") or "/bin/tar"
            command = [tar, "--extract", "--no-same-owner", "--directory", str(root)]
            subprocess.run(command, stdin=file, check=True)  # noqa: S603 - our own image
    finally:
        container.remove(force=True)
    for name in ("dev", "proc", "sys"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / ".dockerenv").unlink(missing_ok=True)
    write_skeleton(root)
