"""Many executions, a third of them hostile, some at the same time: the others end as alone, and nothing is left."""

import collections
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from environments.sandbox import Ending, SandboxError, docker
from environments.sandbox.self_check.neighbours import ATTACKS

HOSTILE = list(ATTACKS.items())


@pytest.mark.slow
def test_many_executions_a_third_of_them_hostile_leave_nothing(sandbox, execute, tmp_path):
    """MLAGENT_TEST_EXECUTIONS sets how many; the full check takes 1000."""
    count = int(os.environ.get("MLAGENT_TEST_EXECUTIONS", "60"))
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: execute("pass", data={"x": ""}), range(6)))
    before = left_behind(sandbox)

    def one(number):
        workspace = tmp_path / f"number{number}"
        name, text, limits = "honest", "open('/tmp/x', 'w').write(open('data/x').read())\nprint('fine')", {}
        if number % 3 == 0:
            name, attack = HOSTILE[number // 3 % len(HOSTILE)]
            text, limits = attack.text, attack.limits
        try:
            ran = execute(text, data={"x": "x"}, workspace=workspace, **limits)
        except SandboxError as error:
            return name, f"a failure of ours: {error}"
        finally:
            shutil.rmtree(workspace)
        if name == "honest":
            return name, "as alone" if (ran.ending, ran.exit_code, ran.stdout) == ("exited", 0, "fine\n") else ran
        return name, ran.ending

    with ThreadPoolExecutor(3) as threads:
        ended = collections.Counter(threads.map(one, range(count)))
    print("\n".join(f"{times:4} {name}: {how}" for (name, how), times in sorted(ended.items(), key=str)))
    assert {how for name, how in ended if name == "honest"} == {"as alone"}
    assert {how for name, how in ended if name != "honest"} <= set(Ending)
    # The last execution's supervisor may still be on its way out; what is left behind stays.
    deadline = time.monotonic() + 10
    while (more := surplus(before, left_behind(sandbox))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert more == {}


def surplus(before, after):
    return {name: count for name, count in after.items() if count > before[name]}


def left_behind(sandbox):
    """What an execution could leave on the host, counted; containers that are made ahead are no trace of one."""
    if sandbox.name == "docker":
        sandbox._containers.clear()
        sandbox._client.close()  # of idle connections, of which it keeps as many as were at work at once
    children = psutil.Process().children(recursive=True)
    ahead = [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]  # a pool that fills up
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")) - len(ahead),
        "processes": len(children),
        "zombies": len([child for child in children if child.status() == psutil.STATUS_ZOMBIE]),
        "mounts": len([line for line in Path("/proc/self/mounts").read_text().splitlines() if not of_an_engine(line)]),
        "folders": len([path for path in sandbox._state.path.glob(".*")]),
        "containers": containers_of(sandbox) if sandbox.name == "docker" else 0,
    }


def of_an_engine(mount):
    """Whether a mount belongs to a container; other tests may be running theirs, and ours are counted."""
    return any(part in mount.split()[1] for part in ("/overlay2/", "/containers/", "/netns/"))


def containers_of(sandbox):
    """How many; other tests may be running theirs on the same engine."""
    return len(
        sandbox._client.containers.list(
            all=True, ignore_removed=True, filters={"label": f"{docker._LABEL}={sandbox._owner}"}
        )
    )


def test_a_workspace_that_cannot_enter_is_our_failure(execute, tmp_path):
    workspace = tmp_path / "odd"
    workspace.mkdir()
    os.mkfifo(workspace / "fifo")
    with pytest.raises(SandboxError, match="fifo"):
        execute("pass", workspace=workspace)
