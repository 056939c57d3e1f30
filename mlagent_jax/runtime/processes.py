"""Several processes, one a host, that run one program over one mesh.

All of them run the same stages in the same order and hold the same state, so that they hand the same work to the
devices. What only one of them can know (a clock, a file, the outcome of a job) is told to all before anyone acts on it:
`agree` and `gather`. They meet on the host, by way of JAX's coordination service, and not in a collective of the
devices: a host may wait for hours for the outcome of a job while the devices idle, and none of them hangs.

A process that dies takes the others with it (JAX's heartbeats see to that, after $MLAGENT_HEARTBEAT_SECONDS without
one); started again, the run resumes.
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
_SHUTDOWN_SECONDS = 20  # for the others to finish too; then they are told that this one is gone
_POLL_MILLISECONDS = 5_000  # so that Ctrl-C is heard while a process waits for the others
_PART = 2**20  # bytes of a value in the store, below any limit of its transport

log = logging.getLogger(__name__)
_rounds = itertools.count()


def are_named(environment: Mapping[str, str]) -> bool:
    """Whether environment variables say that this process is one of several."""
    if ADDRESS in environment:
        return True
    if any(environment.get(name, "1") not in ("", "1") for name in _COUNTS):
        return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def join(asked: bool | None = None) -> None:
    """Join the other processes of this run; to be called before anything else of JAX.

    They are found by $JAX_COORDINATOR_ADDRESS (host:port of process 0) with $JAX_NUM_PROCESSES and $JAX_PROCESS_ID, or
    else as `jax.distributed.initialize` finds them: Slurm, Open MPI, the hosts of a TPU slice.

    Args:
      asked: whether there are others; None: where the environment names them.

    Raises:
      ConfigError: they cannot be found, or do not answer.
    """
    if not (are_named(os.environ) if asked is None else asked):
        return
    given: dict[str, Any] = {}
    if ADDRESS in os.environ and COUNT in os.environ:
        try:
            given = {"num_processes": int(os.environ[COUNT]), "process_id": int(os.environ[INDEX])}
        except (KeyError, ValueError) as error:
            raise ConfigError(f"${COUNT} and ${INDEX} are to be two numbers beside ${ADDRESS}: {error}") from error
        given |= {"coordinator_address": os.environ[ADDRESS], "cluster_detection_method": "deactivate"}
    try:
        given["heartbeat_timeout_seconds"] = int(os.environ.get(HEARTBEAT, _HEARTBEAT_SECONDS))
    except ValueError as error:
        raise ConfigError(f"${HEARTBEAT} is to be a number of seconds: {error}") from error
    # Or JAX would take SIGTERM, with which a run is stopped.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**given, shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the other processes of this run were not found: {error}. Set ${ADDRESS}, ${COUNT} and ${INDEX}, or leave "
            "them and --distributed out to run alone"
        ) from error
    log.info("process %d of %d, %d devices here", index(), count(), jax.local_device_count())


def part() -> None:
    """Tell the others that this process ends; they are not waited for longer than they take to say the same."""
    if distributed.global_state.client is not None:
        with contextlib.suppress(RuntimeError):  # they are gone
            jax.distributed.shutdown()


def count() -> int:
    """Processes of this run."""
    return jax.process_count()


def index() -> int:
    """Number of this one, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Whether this is the process that writes what the run leaves behind."""
    return jax.process_index() == 0


def exchange(data: bytes) -> list[bytes]:
    """What each process gave, in the order of the processes; returns when all have given something.

    To be called by all, as often and in the same order, from one thread.
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

    parts = [data[start : start + _PART] for start in range(0, len(data), _PART)]
    for part, content in enumerate(parts):
        store.key_value_set_bytes(f"{place(number, index())}/{part}", content)
    store.key_value_set_bytes(f"{place(number, index())}/parts", b"%d" % len(parts))
    found = []
    for process in range(count()):
        size = int(read(f"{place(number, process)}/parts"))
        found.append(b"".join(read(f"{place(number, process)}/{part}") for part in range(size)))
    if number:  # Who has come to this round has read the last one.
        store.key_value_delete(f"{place(number - 1, index())}/")
    return found


def gather(work: Callable[[], Any]) -> list[Any]:
    """Results of `work`, which each process does for itself, in the order of the processes.

    Args:
      work: gives something that JSON holds.

    Raises:
      PeerError: it failed elsewhere. Where it failed, its own error.
      Stopped: the work of one was stopped by a signal: then all of them stop.
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
    found = [json.loads(data) for data in exchange(json.dumps({"result": result}).encode())]
    for process, each in enumerate(found):
        if "error" in each:
            raise PeerError(f"process {process} of {count()} failed: {each['error']}")
    for each in found:
        if "stopped" in each:
            raise Stopped(each["stopped"])
    return [each["result"] for each in found]


def agree(work: Callable[[], Any]) -> Any:
    """The result of `work`, which only the first process does; something that JSON holds.

    Raises:
      PeerError: it failed there. There, its own error.
    """
    return gather(work if is_first() else lambda: None)[0]


def meet() -> None:
    """Wait for all: what the first one wrote before is there for the others afterwards."""
    exchange(b"")


def hosts() -> list[str]:
    """Names of the processes' hosts."""
    return gather(socket.gethostname)


def split(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """A host array that all processes hold, as a global one: each device gets its part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def everywhere(array: Any) -> jax.Array:
    """A host array on every device of the mesh of `jax.set_mesh`; on the default device where there is none."""
    mesh = jax.sharding.get_mesh()
    array = np.array(array)  # A copy: on a CPU, JAX may share memory with an array that it is given.
    return jax.numpy.asarray(array) if mesh.empty else split(array, NamedSharding(mesh, PartitionSpec()))


def fetch(array: jax.Array) -> np.ndarray:
    """A global array on the host of every process; to be called by all."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
