"""`python -m environments.sandbox.rootfs.build [--docker]`: build the locked environment in advance.

Sandboxes build the environment themselves on first use; this command is for setting up a machine. The root consists of
this host's interpreter and the packages of one lock file. The image is that root, imported unchanged: no image
registry, no Dockerfile. Hosts with other Pythons use a copy of the folder (`MLAGENT_ENVIRONMENT`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from environments.sandbox.rootfs.assemble import RootFs, RootFsError, ensure_rootfs, say

if TYPE_CHECKING:
    import docker


def ensure_image(client: docker.DockerClient, rootfs: RootFs, progress: Callable[[str], None] = say) -> str:
    """Return the tag of the Docker image made from `rootfs`, importing it into the engine if missing.

    Raises:
      docker.errors.APIError: the engine refuses.
    """
    import docker.errors

    try:
        client.images.get(rootfs.image)
    except docker.errors.ImageNotFound:
        progress(f"Docker image {rootfs.image}: importing {rootfs.path}")
        repository, _, tag = rootfs.image.partition(":")
        reader, writer = os.pipe()
        sender = threading.Thread(target=_write_tar, args=(rootfs, writer), daemon=True)
        sender.start()
        with os.fdopen(reader, "rb") as stream:
            client.api.import_image_from_stream(stream, repository=repository, tag=tag)
        sender.join()
        client.images.get(rootfs.image)
    return rootfs.image


def _write_tar(rootfs: RootFs, descriptor: int) -> None:
    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    try:
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
            archive.add(rootfs.path, arcname=".", filter=anonymous)
    except BrokenPipeError:
        return  # the engine closed the connection; its error is raised where its response is read


def main() -> None:
    description = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="environments/sandbox/rootfs/build.sh", description=description)
    parser.add_argument("--docker", action="store_true", help="also import it as an image into the Docker engine")
    arguments = parser.parse_args()
    try:
        rootfs = ensure_rootfs()
        print(f"bubblewrap root: {rootfs.path}")
        if not arguments.docker:
            return
        import docker
        import docker.errors

        try:
            client = docker.from_env(timeout=600)
            print(f"Docker image: {ensure_image(client, rootfs)}")
        except docker.errors.DockerException as error:
            sys.exit(f"no image was made: {error}; is the engine running, and DOCKER_HOST right?")
    except RootFsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
