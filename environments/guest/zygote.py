"""The warm interpreter: imports common packages once, then forks into the namespaces of every execution.

It is single-threaded, so that a fork is safe. The only state of an execution that it holds is a process id and its
report pipe.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from . import kernel, script, system_calls

WARM = (
    "csv", "dataclasses", "glob", "itertools", "json", "math", "pathlib", "pickle", "re", "subprocess", "tempfile",
    "warnings", "zoneinfo", "numpy", "scipy.sparse", "scipy.stats", "scipy.optimize", "scipy.signal", "scipy.ndimage",
    "scipy.fft", "scipy.linalg", "scipy.spatial", "scipy.interpolate", "pandas", "joblib", "sklearn.calibration",
    "sklearn.cluster", "sklearn.compose", "sklearn.decomposition", "sklearn.discriminant_analysis", "sklearn.dummy",
    "sklearn.ensemble", "sklearn.feature_extraction.image", "sklearn.feature_extraction.text",
    "sklearn.feature_selection", "sklearn.gaussian_process", "sklearn.impute", "sklearn.inspection",
    "sklearn.isotonic", "sklearn.kernel_approximation", "sklearn.kernel_ridge", "sklearn.linear_model",
    "sklearn.manifold", "sklearn.metrics", "sklearn.mixture", "sklearn.model_selection", "sklearn.multiclass",
    "sklearn.multioutput", "sklearn.naive_bayes", "sklearn.neighbors", "sklearn.neural_network", "sklearn.pipeline",
    "sklearn.preprocessing", "sklearn.random_projection", "sklearn.semi_supervised", "sklearn.svm", "sklearn.tree",
    "sklearn.utils",
)  # fmt: skip
"""Modules imported before the first fork, without networkx: it takes half a second, and few scripts use it."""

MAX_REQUEST_BYTES = 1 << 16
REQUEST_DESCRIPTORS = 6
_PROCESSES_BESIDE = 2
"""Number of processes that also count against the script's limit, as the same user: supervisor and init."""


def warm() -> None:
    for name in WARM:
        importlib.import_module(name)
    # A collection in a child would touch, and so copy, every page with an object of the parent.
    gc.collect()
    gc.freeze()


def serve(requests: socket.socket, ready: int) -> None:
    """Fork a script for every request until the keeper ends.

    A request is JSON (see `supervisor.supervise`) with six descriptors: a pidfd of the execution's init process, the
    channel to the host, standard output, standard error, a pipe that starts the script, and a pipe for the report of
    its end: `{"status": wait status, "cpu_seconds": of the script and all that it waited for}`.

    Args:
      requests: SOCK_SEQPACKET, shared by all supervisors.
      ready: pipe that gets one byte when all imports are done.

    Raises:
      RuntimeError: an import started a thread.
    """
    warm()
    # Inherited. If a hard limit of 0 prevents setting `RLIMIT_CORE` to 1, a dump for the host's handler is nearly
    # empty.
    with open("/proc/self/coredump_filter", "w", encoding="ascii") as file:
        file.write("0")
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"the warm interpreter has {threads} threads: forking it is not safe")
    wake_reader, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    poller = select.poll()
    poller.register(requests, select.POLLIN)
    poller.register(wake_reader, select.POLLIN)
    running: dict[int, int] = {}  # process id -> where to report its end
    os.write(ready, b"r")
    while True:
        awake = {descriptor for descriptor, _ in poller.poll()}
        if wake_reader in awake:
            os.read(wake_reader, 4096)
            _report_ended(running)
        if requests.fileno() in awake:
            message, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, REQUEST_DESCRIPTORS)
            if not message:
                return
            report = descriptors.pop()
            child = _fork_into(descriptors[0], own_namespace, json.loads(message), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            if child is None:
                os.close(report)
            else:
                running[child] = report


def _report_ended(running: dict[int, int]) -> None:
    while running:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if not pid:
            return
        report = running.pop(pid, None)
        if report is None:
            continue  # a child that a script reparented to us, where no filter prevents that
        ended = {"status": status, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        try:
            os.write(report, json.dumps(ended).encode())
        except BrokenPipeError:
            pass  # its supervisor has ended
        finally:
            os.close(report)


def _fork_into(init: int, own_namespace: int, request: dict[str, Any], descriptors: list[int]) -> int | None:
    """Fork a child that becomes the script in init's pid namespace; return None if that fails (reported on stderr)."""
    try:
        kernel.setns(init, kernel.CLONE_NEWPID)  # for children
        child = os.fork()
    except OSError as error:
        print(f"cannot fork into an execution: {error}", file=sys.stderr, flush=True)
        child = None
    if child == 0:
        try:
            _become_script(request, *descriptors)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(120)
    kernel.setns(own_namespace, kernel.CLONE_NEWPID)
    return child


def _become_script(request: dict[str, Any], init: int, channel: int, output: int, error: int, start: int) -> NoReturn:
    """Enter the namespaces in the forked child, drop all privileges, wait for the host's go, run the script."""
    kernel.setns(init, kernel.NEW_NAMESPACES & ~kernel.CLONE_NEWPID)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.setresuid(script.UID, script.UID, script.UID)
    socket.socket(fileno=channel).send(b'{"ready": true}')
    if not os.read(start, 1):
        os._exit(120)
    kernel.unshare(kernel.CLONE_NEWCGROUP)  # hides the name of the cgroup that the host has moved it to
    kernel.drop_privileges()
    kernel.set_dumpable(True)  # the change of user cleared it, and with it the script's access to its own /proc
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (error, 2)):
        os.dup2(source, target)
    os.closerange(3, 1 << 16)
    os.umask(0o022)
    os.chdir(script.WORKSPACE)
    limits = request["limits"]
    bounds = {
        "CORE": 1,  # where a handler takes dumps from a pipe, the kernel reads 1 as none, and 0 as all
        "CPU": int(limits["cpu_seconds"]) + 2,  # beyond the supervisor's own check, which reports the reason
        "FSIZE": limits["file_mb"] * 2**20,
        "NOFILE": 1024,
        "NPROC": limits["processes"] + _PROCESSES_BESIDE,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": script.MAX_PENDING_SIGNALS,
    }
    if request["watch_memory"]:
        bounds["AS"] = (2 * limits["memory_mb"] + 1024) * 2**20  # one process cannot exhaust memory between checks
    kernel.set_limits(bounds)
    system_calls.install(unmapped_memory=not request["watch_memory"])
    script.run_script(request["script"], request["seed"])
