"""A worker that is killed in the middle of a script: nothing of it runs on, and its successor finds the place clean."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from environments.sandbox import docker, open_sandbox

HOST = """
import sys
from pathlib import Path
from environments.protocol import Limits
from environments.sandbox import open_sandbox

name, workspace = sys.argv[1:]
sandbox = open_sandbox(name)
print(sandbox._state.path, flush=True)
sandbox.run(Path(workspace), "train.py", Limits(wall_seconds=600.0, cpu_seconds=600.0))
"""


def running(marker):
    """Processes, on the host or in a namespace of it, that carry `marker` as their name."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == marker:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


@pytest.mark.slow
def test_what_a_killed_host_left_running_is_gone(sandbox, tmp_path):
    marker = f"m{uuid.uuid4().hex[:12]}"  # a name of at most 15 characters, which a process can take
    (tmp_path / "train.py").write_text(
        "import ctypes, os, time\n"
        f"ctypes.CDLL(None).prctl(15, b'{marker}')\n"
        "os.fork()\n"  # the script and a child of it
        "time.sleep(600)\n"
    )
    host = subprocess.Popen([sys.executable, "-c", HOST, sandbox.name, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        folder = Path(os.fsdecode(host.stdout.readline().strip()))
        assert folder.is_dir()
        until(lambda: len(running(marker)) == 2)
        os.kill(host.pid, signal.SIGKILL)
        host.wait()
        # bubblewrap's processes die with their parent; a container is removed by the next sandbox on this host.
        open_sandbox(sandbox.name).close()
        until(lambda: not running(marker))
        if sandbox.name == "docker":
            labels = [
                container.labels[docker._LABEL]
                for container in sandbox._client.containers.list(
                    all=True, ignore_removed=True, filters={"label": docker._LABEL}
                )
            ]
            assert not [label for label in labels if label.split(":")[1] == str(host.pid)]
        assert not folder.exists()
    finally:
        host.kill()
        host.stdout.close()
