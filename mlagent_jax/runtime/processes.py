"""Several processes, one per host, that run one program over one mesh.

All processes run the same stages in the same order with the same state, and so give the same work to the devices.
Values that only one process knows (a clock, a file, the outcome of a job) are shared before any process acts on them:
`agree` and `gather`. This happens on the host, through JAX's coordination service, and not in a collective of the
devices: a host may wait for hours for the outcome of a job while the devices idle, and no device hangs.

If a process dies, JAX ends the others (after $MLAGENT_HEARTBEAT_SECONDS without a heartbeat). Started again, the run
resumes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its key-value store has no public name
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from mlagent_jax.runtime.errors import ConfigError, PeerError
from mlagent_jax.runtime.interruption import Stopped

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
HEARTBEAT = "MLAGENT_HEARTBEAT_SECONDS"
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_HEARTBEAT_SECONDS = 100  # as in JAX
_SHUTDOWN_SECONDS = 20  # wait for the others at shutdown
_POLL_MILLISECONDS = 5_000  # so that a waiting process reacts to Ctrl-C
_CHUNK = 2**20  # bytes per stored value, below any transport limit

log = logging.getLogger(__name__)
_rounds = itertools.count()


def are_named(environment: Mapping[str, str]) -> bool:
    """Return whether environment variables say that this process is one of several."""
    if ADDRESS in environment:
        return True
    if any(environment.get(name, "1") not in ("", "1") for name in _COUNTS):
        return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def join(asked: bool | None = None) -> None:
    """Join the other processes of this run; call it before anything else of JAX.

    They are found by $JAX_COORDINATOR_ADDRESS (host:port of process 0) with $JAX_NUM_PROCESSES and $JAX_PROCESS_ID, or
    by `jax.distributed.initialize`: Slurm, Open MPI, the hosts of a TPU slice.

    Args:
      asked: Whether there are others; None: only if the environment names them.

    Raises:
      ConfigError: They cannot be found, or do not answer.
    """
    if not (are_named(os.environ) if asked is None else asked):
        return
    given: dict[str, Any] = {}
    if ADDRESS in os.environ and COUNT in os.environ:
        try:
            given = {"num_processes": int(os.environ[COUNT]), "process_id": int(os.environ[INDEX])}
        except (KeyError, ValueError) as error:
            raise ConfigError(f"with ${ADDRESS}, ${COUNT} and ${INDEX} must be numbers: {error}") from error
        given |= {"coordinator_address": os.environ[ADDRESS], "cluster_detection_method": "deactivate"}
    try:
        given["heartbeat_timeout_seconds"] = int(os.environ.get(HEARTBEAT, _HEARTBEAT_SECONDS))
    except ValueError as error:
        raise ConfigError(f"${HEARTBEAT} must be a number of seconds: {error}") from error
    # Otherwise JAX would handle SIGTERM, which stops a run.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**given, shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the other processes of this run were not found: {error}. Set ${ADDRESS}, ${COUNT} and ${INDEX}, or leave "
            "them and --distributed out to run alone"
        ) from error
    log.info("process %d of %d, %d devices here", index(), count(), jax.local_device_count())


def disconnect() -> None:
    """Leave the run: announce that this process ends, and wait until the others do, at most the shutdown time-out."""
    if distributed.global_state.client is not None:
        with contextlib.suppress(RuntimeError):  # the others have ended
            jax.distributed.shutdown()


def count() -> int:
    """Return the number of processes of this run."""
    return jax.process_count()


def index() -> int:
    """Return the number of this process, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Return whether this process writes the run's files."""
    return jax.process_index() == 0


def exchange(data: bytes) -> list[bytes]:
    """Return the data of each process, in the order of the processes, when all have provided it.

    All processes must call it equally often and in the same order, each from one thread.
    """
    if count() == 1:
        return [data]
    store, number = distributed.global_state.client, next(_rounds)

    def read(name: str) -> bytes:
        while True:
            try:
                return store.blocking_key_value_get_bytes(name, _POLL_MILLISECONDS)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def place(round_: int, process: int) -> str:
        return f"mlagent/{round_}/{process}"

    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    for chunk, content in enumerate(chunks):
        store.key_value_set_bytes(f"{place(number, index())}/{chunk}", content)
    store.key_value_set_bytes(f"{place(number, index())}/chunks", b"%d" % len(chunks))
    received = []
    for process in range(count()):
        size = int(read(f"{place(number, process)}/chunks"))
        received.append(b"".join(read(f"{place(number, process)}/{chunk}") for chunk in range(size)))
    if number:  # A process in this round has read the last round.
        store.key_value_delete(f"{place(number - 1, index())}/")
    return received


def gather(work: Callable[[], Any]) -> list[Any]:
    """Return the results of `work`, which each process runs for itself, in the order of the processes.

    Args:
      work: Function with a JSON result.

    Raises:
      PeerError: It failed in another process. In the process where it failed, its own error is raised.
      Stopped: A signal stopped the work of one process; then all of them stop.
    """
    if count() == 1:
        return [work()]
    try:
        result = work()
    except Stopped as stopped:
        exchange(json.dumps({"stopped": stopped.signum}).encode())
        raise
    except Exception as error:
        exchange(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        raise
    results = [json.loads(data) for data in exchange(json.dumps({"result": result}).encode())]
    for process, each in enumerate(results):
        if "error" in each:
            raise PeerError(f"process {process} of {count()} failed: {each['error']}")
    for each in results:
        if "stopped" in each:
            raise Stopped(each["stopped"])
    return [each["result"] for each in results]


def agree(work: Callable[[], Any]) -> Any:
    """Return the JSON result of `work`, which only the first process runs.

    Raises:
      PeerError: It failed there. In the first process, its own error is raised.
    """
    return gather(work if is_first() else lambda: None)[0]


def lead(work: Callable[[], Any], rest: Callable[[], Any]) -> None:
    """Run `work` in the first process, then `rest` in all, also if `work` failed: what is left of collectives that
    `work` shares with the others, which wait in them.

    Raises:
      PeerError: `work` failed. In the first process, its own error is raised.
    """
    failure: Exception | None = None
    if is_first():
        try:
            work()
        except Exception as error:
            failure = error
    rest()

    def tell() -> None:
        if failure is not None:
            raise failure

    agree(tell)


def meet() -> None:
    """Wait for all processes: files that the first one wrote before are then visible to the others."""
    exchange(b"")


def hosts() -> list[str]:
    """Return the names of the processes' hosts."""
    return gather(socket.gethostname)


def split(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """Return a host array that all processes hold as a global array: each device gets its shard."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def everywhere(array: Any) -> jax.Array:
    """Return a host array replicated on the mesh of `jax.set_mesh`, or on the default device without a mesh."""
    mesh = jax.sharding.get_mesh()
    array = np.array(array)  # A copy: on a CPU, JAX may share memory with its input.
    return jax.numpy.asarray(array) if mesh.empty else split(array, NamedSharding(mesh, PartitionSpec()))


def fetch(array: jax.Array) -> np.ndarray:
    """Return a global array on the host of every process; all processes must call it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
