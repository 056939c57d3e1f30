"""The CPU host's program: a sandbox, a queue and a store, and a `Worker` on them until it is told to stop.

    python -m environments.worker --queue=URL --tasks=DIR --store=URL --slots=8 --sandbox=auto

A trainer starts a worker for its own host with `environments.worker.supervision.start_workers`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from environments.queue import QueueError, open_queue
from environments.queue.base import QUEUE_VARIABLE, Capabilities
from environments.queue.engine import take_credentials
from environments.worker.host import host_capabilities, report_of, usable_cores, worker_name
from environments.worker.worker import Worker, log


@contextlib.contextmanager
def _signals(worker: Worker) -> Iterator[None]:
    """Drain on the first SIGTERM or SIGINT, abort on the second."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: worker.stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m environments.worker", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--queue", default=os.environ.get(QUEUE_VARIABLE), help=f"URL of the queue; default: ${QUEUE_VARIABLE}")
    add("--tasks", type=Path, required=True, help="folder of prepared tasks")
    add("--store", required=True, help="URL or folder of the store, the trainer's")
    add("--slots", type=int, default=max(1, usable_cores() - 1), help="steps at once")
    add("--sandbox", choices=("auto", "docker", "bubblewrap"), default="auto")
    add("--editor_url", default="", help="endpoint of a second language model; default: $MLAGENT_EDITOR_URL")
    add("--editor_model", default="", help="its name; default: $MLAGENT_EDITOR_MODEL (its key: $MLAGENT_EDITOR_KEY)")
    add("--cores", type=int, default=0, help="cores offered to one execution; default: all that this process may use")
    add(
        "--memory_mb",
        type=int,
        default=0,
        help="memory offered to one execution; default: all that this process may use",
    )
    add("--lease_seconds", type=float, default=60.0, help="a lost worker's job is given to another after so long")
    add("--drain_seconds", type=float, default=25.0, help="how long running steps may take to finish on SIGTERM")
    add("--parent_pid", type=int, help="stop when this process is gone")
    arguments = parser.parse_args(argv)
    if not arguments.queue:
        parser.error(f"--queue is missing, and ${QUEUE_VARIABLE} is not set")
    if arguments.slots < 1:
        parser.error(f"--slots is {arguments.slots}; at least 1")
    if not any(arguments.tasks.glob("*/task.json")):
        parser.error(f"--tasks is {arguments.tasks}: no prepared task is there; copy `tasks` of the run's workdir")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker and return the exit status."""
    from environments.actions.second_model import KEY_VARIABLE, configured_endpoint
    from environments.files.blobs import open_store
    from environments.sandbox import open_sandbox
    from environments.sandbox.base import SandboxError
    from environments.sandbox.speed import HostSpeed, work_seconds
    from environments.step import Environment

    arguments = _arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with contextlib.ExitStack() as stack:
        try:
            url = take_credentials(arguments.queue, os.environ)  # Child processes must not see the credentials.
            store = open_store(arguments.store)
            queue = stack.enter_context(contextlib.closing(open_queue(url, store=store)))
        except (QueueError, OSError) as error:
            log("cannot_start", reason=str(error))
            return 1
        try:
            editor = configured_endpoint(url=arguments.editor_url, model=arguments.editor_model)
            os.environ.pop(KEY_VARIABLE, None)
            sandbox = stack.enter_context(contextlib.closing(open_sandbox(arguments.sandbox)))
            speed = HostSpeed(lambda: work_seconds(sandbox))
            if speed.is_slow:
                log("slow_host", slowdown=round(speed.slowdown, 2))
            environment = Environment(arguments.tasks, sandbox, store, editor=editor, speed=speed)
            stack.callback(environment.close)
        except (SandboxError, OSError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            log("cannot_start", reason=reason)
            queue.report(worker_name(), report_of(arguments.slots, Capabilities(), f"stopped, cannot start: {reason}"))
            return 1
        guarantees = sandbox.guarantees | ({editor.id} if editor else set())  # A job may require this very model.
        capabilities = host_capabilities(
            sandbox.environment_digest, guarantees, arguments.cores, arguments.memory_mb, sandbox.gpus
        )
        worker = Worker(
            queue,
            environment.take,
            arguments.slots,
            capabilities,
            interrupt=environment.interrupt,
            lease_seconds=arguments.lease_seconds,
            drain_seconds=arguments.drain_seconds,
            parent_pid=arguments.parent_pid,
        )
        with _signals(worker):
            worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
