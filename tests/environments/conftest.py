"""Makes `fakes` importable for the folders below, and a disk that is soon full."""

import subprocess

import needs
import pytest


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True)
    needs.need(mounted.returncode == 0, "mounting a file system is not allowed here: run as root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
