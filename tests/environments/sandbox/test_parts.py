"""Capture, data store, cgroups' view, and what becomes of a warm sandbox that dies."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import needs
import psutil
import pytest

from environments.files.file_systems import cache_directory
from environments.guest.capture import Capture
from environments.protocol import Limits
from environments.sandbox import SandboxError, SandboxUnavailableError, bubblewrap, open_sandbox, users
from environments.sandbox.bubblewrap import BubblewrapSandbox, warm
from environments.sandbox.data import DataStore


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_capture_keeps_head_and_tail_whatever_the_chunks(size):
    text = "".join(f"{n:04d}" for n in range(1000)).encode()
    capture = Capture(100)
    for start in range(0, len(text), size):
        capture.feed(text[start : start + size])
    assert capture.text() == f"{text[:50].decode()}\n[... 3900 bytes cut ...]\n{text[-50:].decode()}"


def test_capture_keeps_all_that_fits():
    capture = Capture(100)
    capture.feed(b"x" * 60)
    capture.feed(b"y" * 40)
    assert capture.text() == "x" * 60 + "y" * 40


def test_the_store_copies_once_and_again_after_a_change(tmp_path):
    store = DataStore(_folder(tmp_path / "store"))
    data = _folder(tmp_path / "data")
    (data / "x").write_text("one")
    (data / "link").symlink_to("/etc/passwd")
    with store.lease(data) as first, store.lease(data) as second:
        assert first == second
        assert [path.name for path in (store.root / first).iterdir()] == ["x"]
    (data / "x").write_text("other")
    with store.lease(data) as third:
        assert (store.root / third / "x").read_text() == "other"


def test_the_store_evicts_what_nobody_uses(tmp_path):
    store = DataStore(_folder(tmp_path / "store"), max_bytes=250)
    folders = []
    for n in range(3):
        folders.append(_folder(tmp_path / f"data{n}"))
        (folders[-1] / "x").write_bytes(bytes(100))
    with store.lease(folders[0]) as kept:
        for folder in folders[1:]:
            with store.lease(folder) as name:
                assert (store.root / name / "x").exists()
        assert (store.root / kept / "x").exists()
        assert len(list(store.root.iterdir())) == 2


def test_while_data_is_copied_other_data_is_to_be_had_and_those_who_wait_share_the_copy(tmp_path, monkeypatch):
    store = DataStore(_folder(tmp_path / "store"))
    large, small = _folder(tmp_path / "large"), _folder(tmp_path / "small")
    for folder in (large, small):
        (folder / "x").write_text(folder.name)
    copy, copying, go_on = shutil.copyfile, threading.Event(), threading.Event()
    copied = []

    def slow_copy(source, target):
        copied.append(source.parent.name)
        if source.parent == large:
            copying.set()
            assert go_on.wait(60)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", slow_copy)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(lambda: _read_leased(store, large)) for _ in range(2)]
        assert copying.wait(60)
        assert _read_leased(store, small) == "small"
        go_on.set()
        assert [each.result(60) for each in waiting] == ["large", "large"]
    assert sorted(copied) == ["large", "small"]


def test_a_copy_that_fails_is_an_error_for_all_who_wait_and_is_tried_again(tmp_path, monkeypatch):
    store = DataStore(_folder(tmp_path / "store"))
    data = _folder(tmp_path / "data")
    (data / "x").write_text("one")

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space left"), store.lease(data):
            pass
    assert list(store.root.iterdir()) == []
    assert _read_leased(store, data) == "one"


def _read_leased(store, data):
    with store.lease(data) as name:
        return (store.root / name / "x").read_text()


def _folder(path):
    path.mkdir()
    return path


@pytest.mark.slow
def test_a_warm_sandbox_that_dies_is_our_failure_and_is_started_again(tmp_path):
    (tmp_path / "train.py").write_text("print('on')")
    before = set(psutil.Process().children(recursive=True))
    sandbox = BubblewrapSandbox()
    try:
        inside = set(psutil.Process().children(recursive=True)) - before
        zygote = max(inside, key=lambda process: process.memory_info().rss)
        zygote.send_signal(signal.SIGKILL)
        outcomes = []
        for _ in range(3):
            try:
                outcomes.append(sandbox.run(tmp_path, "train.py", Limits()).stdout)
            except SandboxError:
                outcomes.append("failed")
        assert outcomes[-1] == "on\n"
    finally:
        sandbox.close()
    assert not [process for process in inside if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run(tmp_path, "train.py", Limits())


@pytest.mark.slow
def test_an_execution_that_is_not_answered_for_ends_no_other(tmp_path, monkeypatch):
    """Its own interpreter takes no other execution, and is closed when the last one in it has ended."""
    monkeypatch.setattr(bubblewrap, "_GRACE_SECONDS", 20.0)
    monkeypatch.setattr(bubblewrap._Call, "_exceeded", lambda call, wall_seconds: None)
    scripts = {"slow": ("import time; time.sleep(600)", 1.0), "neighbour": ("import time; time.sleep(25)", 60.0)}
    for name, (text, _) in scripts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").write_text(f"{text}; print('on')")
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "train.py").write_text("print('on')")
    sandbox = BubblewrapSandbox()
    try:
        with ThreadPoolExecutor(2) as pool:
            running = {
                name: pool.submit(sandbox.run, tmp_path / name, "train.py", Limits(wall_seconds=wall))
                for name, (_, wall) in scripts.items()
            }
            with pytest.raises(SandboxError, match="does not answer"):
                running["slow"].result()
            assert sandbox.run(tmp_path / "next", "train.py", Limits()).stdout == "on\n"
            assert running["neighbour"].result().stdout == "on\n"
        assert len(sandbox._executions) == 1
    finally:
        sandbox.close()


def test_a_report_is_read_though_the_supervisor_ended_before_it_read_our_kill():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        theirs.send(b'{"exit": 0}')
        ours.send(b'{"kill": "cpu"}')
        theirs.close()
        assert bubblewrap._receive(ours) == ({"exit": 0}, 0)
        with pytest.raises(SandboxError, match="died"):
            bubblewrap._receive(ours)


def test_closing_leaves_nothing(tmp_path):
    before = set(os.listdir("/proc/self/fd")), set(psutil.Process().children(recursive=True))
    sandbox = BubblewrapSandbox()
    state = sandbox._state.path
    assert state.exists()
    sandbox.close()
    assert not state.exists()
    assert (set(os.listdir("/proc/self/fd")), set(psutil.Process().children(recursive=True))) == before


def test_a_host_without_bubblewrap_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(warm.shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailableError, match="apt-get install bubblewrap"):
        open_sandbox("bubblewrap")


def test_a_host_that_forbids_namespaces_is_told_the_remedy(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        fake = Path(folder, "bwrap")
        fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
        fake.chmod(0o755)
        fake.parent.chmod(0o755)  # it is started as somebody else
        monkeypatch.setattr(warm.shutil, "which", lambda name: str(fake))
        with pytest.raises(SandboxUnavailableError, match=r"No permissions.*sysctl") as caught:
            open_sandbox("bubblewrap")
    assert "unprivileged" in str(caught.value)


@pytest.mark.slow
def test_a_guarantee_that_does_not_hold_is_an_error_at_start(monkeypatch):
    monkeypatch.setattr("environments.sandbox.bubblewrap.open_cgroups", lambda: None)
    sandbox = open_sandbox("bubblewrap")
    try:
        assert {"memory", "cpu_time"}.isdisjoint(sandbox.guarantees)
    finally:
        sandbox.close()
    with pytest.raises(SandboxUnavailableError, match="memory"):
        open_sandbox("bubblewrap", required=["memory"])


@pytest.mark.slow
def test_without_control_groups_limits_are_watched_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr("environments.sandbox.bubblewrap.open_cgroups", lambda: None)
    sandbox = open_sandbox("bubblewrap")
    limits = Limits(cpu_seconds=1, memory_mb=256)
    try:
        for text, ending in (
            ("x = []\nwhile True: x.append(b'x' * (1 << 20))", "memory_limit"),
            ("import os\nos.fork()\nwhile True: pass", "time_limit"),
            ("print('fine')", "exited"),
        ):
            (tmp_path / "train.py").write_text(text)
            assert sandbox.run(tmp_path, "train.py", limits).ending == ending
    finally:
        sandbox.close()


def test_auto_takes_the_first_that_works_here_and_names_every_remedy_where_none_does(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")
    sandbox = open_sandbox("auto")
    assert sandbox.name == "bubblewrap"
    sandbox.close()
    monkeypatch.setattr(warm.shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailableError, match=r"(?s)apt-get install docker\.io.*apt-get install bubblewrap"):
        open_sandbox("auto")


def test_no_two_sandboxes_have_a_user_id_in_common():
    narrow = users.Range(64_000, 2)
    first, second = users.claim_users(narrow), users.claim_users(narrow)
    assert abs(first.first - second.first) == users.BLOCK
    assert users.claim_users(narrow) is None
    with first.lease() as one, first.lease() as other:
        assert 0 < one != other > 0
    first.close()
    again = users.claim_users(narrow)
    assert again.first == first.first
    again.close()
    second.close()


def test_nothing_of_the_host_is_named_inside(tmp_path):
    (tmp_path / "train.py").write_text("print(open('/proc/self/mountinfo').read(), open('/proc/self/cgroup').read())")
    (tmp_path / "data").mkdir()
    with contextlib.closing(BubblewrapSandbox()) as sandbox:
        shown = sandbox.run(tmp_path, "train.py", Limits(), data=tmp_path / "data").stdout
        assert "/workspace/data" in shown
        # Control groups are called after this program and the worker's process id.
        for name in (str(sandbox._rootfs.path), str(sandbox._state.path), "mlagent"):
            assert name not in shown


AS_A_USER = """
import os, sys
import encodings.idna, psutil
import environments.sandbox.bubblewrap as bubblewrap
from environments.sandbox.self_check import CHECKS, Bench
from pathlib import Path

folder = Path(sys.argv[1])
os.setgroups([]); os.setgid(12345); os.setuid(12345)
sandbox = bubblewrap.BubblewrapSandbox()
print("neighbours" in sandbox.guarantees)
warm = set()
submit = bubblewrap.WarmSandbox.submit
bubblewrap.WarmSandbox.submit = lambda self, *given: (warm.add(self), submit(self, *given))[1]
CHECKS["no_script_holds_a_file_that_others_read"].run(Bench(sandbox, folder))
print(len(warm))
sandbox.close()
"""


@pytest.mark.slow
def test_where_the_worker_is_not_root_executions_share_nothing(tmp_path):
    """The data are the worker's own there, and so a script's to put a lease on, if the filter let it."""
    needs.need(os.geteuid() == 0, "this test becomes another user: run it as root")
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 12345, 12345)
        variables = {**os.environ, "HOME": folder, "TMPDIR": folder, "MLAGENT_CACHE": str(cache_directory())}
        command = [sys.executable, "-c", AS_A_USER, folder]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "False\n2\n", done.stderr[-2000:]


@pytest.mark.slow
def test_root_without_the_capability_to_administer_has_the_same_sandbox():
    """The owner of the namespace writes its map of user ids, as in a container."""
    needs.need(os.geteuid() == 0, "this test drops a capability of root: run it as root")
    program = (
        "from environments.sandbox import open_sandbox\n"
        "sandbox = open_sandbox('bubblewrap', required=['neighbours', 'privileges'])\n"
        "sandbox.close()\n"
    )
    needs.sandbox("bubblewrap").close()
    dropped = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run([*dropped, sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
