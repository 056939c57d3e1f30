"""Temporary folders of processes that were killed: removed by a successor; those of the living never."""

import os
import subprocess
import sys
from pathlib import Path

import fakes
import pytest

from environments.files.blobs import open_store
from environments.files.owned import OwnedFolder, remove_abandoned
from environments.step import Environment

ROOT = Path(__file__).resolve().parents[3]
OWNER = """
import pathlib, sys
from environments.files.owned import OwnedFolder
folder = OwnedFolder("mlagent-step-", pathlib.Path(sys.argv[1]))
(folder.path / "workspace" / "closed").mkdir(parents=True)
(folder.path / "workspace" / "closed" / "file").write_text("x")
(folder.path / "workspace" / "link").symlink_to(sys.argv[2])
(folder.path / "workspace" / "closed").chmod(0)
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """A process that owns a folder in `tmp_path/scratch` with what a hostile script may leave, and that folder."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    command = [sys.executable, "-c", OWNER, str(tmp_path / "scratch"), str(tmp_path / "precious")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def start(tmp_path):
    scratch = tmp_path / "scratch"
    Environment(tmp_path / "tasks", fakes.FakeSandbox(), open_store(tmp_path / "store"), scratch=scratch).close()


def test_the_next_start_removes_what_a_killed_worker_left_and_nothing_else(tmp_path, owner):
    process, folder = owner
    others = [tmp_path / "scratch" / name for name in ("mlagent-step", "someone-else's")]
    for other in others:
        other.mkdir()
    start(tmp_path)
    assert folder.is_dir(), "its owner is alive"
    process.kill()
    process.wait()
    start(tmp_path)
    assert not folder.exists()
    assert all(other.is_dir() for other in others)
    assert (tmp_path / "precious" / "file").exists()


def test_a_link_or_file_of_that_name_is_left_alone(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "x-link").symlink_to(tmp_path / "target")
    (tmp_path / "x-file").write_text("x")
    remove_abandoned("x-", tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["target", "x-file", "x-link"]


def test_a_closed_folder_is_gone_and_its_descriptor_with_it(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    OwnedFolder("x-", tmp_path).close()
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before
