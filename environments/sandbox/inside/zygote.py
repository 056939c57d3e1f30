"""The warm interpreter: imports once what scripts import, then forks a supervised process for every execution.

It is the only program of one long-lived bubblewrap sandbox. Single-threaded, so that a fork is safe; it reads nothing
but requests from the host, and holds nothing that belongs to an execution.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys

from . import supervisor

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
"""Imported before the first fork. networkx is not: half a second that few scripts want."""

MAX_REQUEST_BYTES = 1 << 16
REQUEST_DESCRIPTORS = 5


def warm() -> None:
    for name in WARM:
        importlib.import_module(name)
    # Collecting in a child would touch, and so copy, every page that holds an object of the parent's.
    gc.collect()
    gc.freeze()


def serve(control: socket.socket) -> None:
    """Answer requests until the host closes its end."""
    warm()
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"the warm interpreter has {threads} threads: forking it is not safe")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the kernel
    control.send(json.dumps({"python": sys.version}).encode())
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, REQUEST_DESCRIPTORS)
        if not message:
            return
        sys.stdout.flush()
        if _fork_or_none() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            supervisor.supervise(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _fork_or_none() -> int | None:
    """None where the host is out of processes or memory: the closed channel tells the other end."""
    try:
        return os.fork()
    except OSError as error:
        print(f"fork: {error}", file=sys.stderr, flush=True)
        return None


def main() -> None:
    serve(socket.socket(fileno=int(sys.argv[1])))
