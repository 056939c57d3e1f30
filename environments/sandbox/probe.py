"""Probe of a sandbox's guarantees on this host: it runs small hostile scripts, and the attacks that fail count.

Both providers use it for their `guarantees`. A sandbox is probed once.
"""

from __future__ import annotations

import json
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from environments.protocol import Limits
from environments.sandbox.base import Ending, Execution, Sandbox, SandboxError

_LIMITS = Limits(cpu_seconds=5.0, wall_seconds=30.0, memory_mb=256, processes=16, file_mb=8, disk_mb=8, output_kb=16)

_LOOK = """
import ctypes, fcntl, json, os, socket
seen = {}

def fails(action):
    try:
        action()
    except OSError:
        return True
    return False

def status(name):
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name + ":"))

def connects(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(0.5)
        s.connect(address)

sentinel = open("sentinel.txt").read()
seen["filesystem"] = (
    not os.path.exists(sentinel)
    and all(fails(lambda p=p: open(p, "w")) for p in ("/x", "/usr/x", "/etc/x", "data/x", "/dev/x"))
    and open("data/public.txt").read() == "public"
)
interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
seen["network"] = set(interfaces) <= {"lo"} and fails(lambda: connects(socket.AF_INET, ("192.0.2.1", 80)))
seen["processes"] = len([name for name in os.listdir("/proc") if name.isdecimal()]) <= 3
seen["privileges"] = (
    os.getuid() != 0
    and int(status("CapEff"), 16) == int(status("CapBnd"), 16) == 0
    and status("NoNewPrivs") == "1"
    and status("Seccomp") == "2"
)
libc = ctypes.CDLL(None)
seen["neighbours"] = (
    fails(lambda: fcntl.fcntl(os.open("sentinel.txt", os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK))
    and libc.inotify_init1(0) == -1
)

def fill(folder):
    block = bytes(1 << 20)
    for i in range(64):
        with open(f"{folder}/fill{i}", "wb", buffering=0) as f:
            while f.tell() < 4 << 20:
                if f.write(block) != len(block):
                    raise OSError("short write")

def clean(folder):
    for name in os.listdir(folder):
        if name.startswith("fill"):
            os.unlink(f"{folder}/{name}")

seen["disk"] = True
for folder in (".", "/tmp", "/dev/shm"):
    seen["disk"] = seen["disk"] and fails(lambda: fill(folder))
    clean(folder)

def many(folder):
    for i in range(20000):
        open(f"{folder}/fill{i}", "w").close()

seen["inodes"] = fails(lambda: many("/tmp"))
clean("/tmp")

def fork():
    for _ in range(200):
        if os.fork() == 0:
            import time
            time.sleep(60)

seen["process_count"] = fails(fork)
print(json.dumps(seen))
"""

_PRINT = "print('x' * 200_000)"

_EAT = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        eaten = []
        for _ in range(100):
            eaten.append(b"x" * (1 << 20))
        time.sleep(10)
        os._exit(0)
time.sleep(10)
"""
"""Four processes of 100 MiB each, every one below the limit of 256."""

_SPIN = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
end = time.monotonic() + 10
while time.monotonic() < end:
    if os.fork() == 0:
        stop = time.process_time() + 0.004
        while time.process_time() < stop:
            pass
        os._exit(0)
    time.sleep(0.004)
"""
"""Short-lived processes that no process waits for: their time is in no parent's account."""


class Provider(Sandbox, Protocol):
    """A sandbox that can be probed."""

    @property
    def claims(self) -> frozenset[str]:
        """Guarantees that the provider's construction gives on this host; only these are tested."""


_known: weakref.WeakKeyDictionary[Provider, frozenset[str]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def probe(sandbox: Provider) -> frozenset[str]:
    """Return the claims of `sandbox` that withstood the scripts above. Takes about a second, once.

    Raises:
      SandboxError: it cannot run scripts at all.
    """
    with _lock:
        if sandbox not in _known:
            _known[sandbox] = sandbox.claims & _try(sandbox)
        return _known[sandbox]


def _try(sandbox: Sandbox) -> frozenset[str]:
    with tempfile.TemporaryDirectory(prefix="mlagent-probe-") as folder:
        root = Path(folder)
        (root / "data").mkdir()
        (root / "data" / "public.txt").write_text("public", encoding="utf-8")
        sentinel = root / "sentinel"
        sentinel.write_text("not to be seen", encoding="utf-8")

        def run(text: str, limits: Limits = _LIMITS) -> Execution:
            workspace = Path(tempfile.mkdtemp(dir=root))
            (workspace / "train.py").write_text(text, encoding="utf-8")
            (workspace / "sentinel.txt").write_text(str(sentinel), encoding="utf-8")
            return sandbox.run(workspace, "train.py", limits, data=root / "data")

        return _judge(run)


def _judge(run: Callable[..., Execution]) -> frozenset[str]:
    execution = run(_LOOK)
    if execution.exit_code != 0:
        raise SandboxError(f"the probe's script failed in the sandbox: {execution.detail} {execution.stderr[-1000:]}")
    held = {name for name, holds in json.loads(execution.stdout.splitlines()[-1]).items() if holds}
    if len(run(_PRINT).stdout) <= 2 * _LIMITS.output_kb * 1024:
        held.add("output")
    if run(_EAT).ending == Ending.MEMORY_LIMIT:
        held.add("memory")
    short = Limits.from_dict({**_LIMITS.to_dict(), "cpu_seconds": 0.3})
    if run(_SPIN, short).ending == Ending.TIME_LIMIT:
        held.add("cpu_time")
    return frozenset(held)
