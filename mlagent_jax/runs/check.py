"""`train --check`: what a run would find on this host, looked at before a workdir is taken."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import jax
from etils import epath

from environments.queue import open_engine, schema
from environments.queue.engine import parse_url
from environments.sandbox import open_sandbox
from mlagent_jax.runs import named_tasks
from mlagent_jax.runs.devices import Devices
from mlagent_jax.runs.inputs import check_editor, check_inputs, check_remote, executing
from mlagent_jax.runs.shapes import check_shapes
from mlagent_jax.runs.workdir import check_binding, is_remote
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import Config

QUEUE_SECONDS = 5.0
"""Time in which the queue's database has to answer."""


def check(config: Config, workdir: str | None = None) -> Iterator[str]:
    """Check settings, inputs, tasks, sandbox and queue; yield a line for each thing that was found.

    Args:
      config: Settings, checked in themselves.
      workdir: Workdir that the run would have; None: it is not looked at.

    Raises:
      ConfigError, SandboxError, QueueError: As `Run.open` would.
    """
    yield f"settings: right; stages {', '.join(config.stages)}"
    check_inputs(config)
    inputs = {"checkpoint": config.policy.checkpoint, "trajectories": config.pool.trajectories}
    yield f"inputs: {', '.join(f'{name} {value}' for name, value in inputs.items() if value) or 'none'}"
    check_shapes(config, Devices.of(config.mesh))
    yield f"devices: {jax.device_count()} ({jax.devices()[0].device_kind}); batches and lengths fit mesh and model"
    if set(config.stages) != {"export"}:
        train, held_out = (named_tasks.names(config, split) for split in named_tasks.SPLITS)
        named_tasks.places(config)
        yield f"tasks: {len(train)} to train on, {len(held_out)} held out"
        with contextlib.closing(open_sandbox(config.workers.sandbox, config.workers.guarantees)) as sandbox:
            yield f"sandbox: {sandbox.name}, guarantees {', '.join(sorted(sandbox.guarantees))}"
    if executing(config):
        if config.workers.slots:
            check_editor(config)
        if "://" in config.workers.queue and not config.workers.queue.startswith("sqlite"):
            with contextlib.closing(open_engine(parse_url(config.workers.queue), QUEUE_SECONDS)) as engine:
                engine.transact(schema.exists, write=False)
        yield f"queue: {config.workers.queue or 'a file in the workdir'}; workers here: {config.workers.slots}"
    if workdir is not None:
        path = epath.Path(workdir)
        if is_remote(path):
            check_remote(config, path)
        stored = check_binding(path, config)
        if not path.exists():
            _check_parent(path)
        yield f"workdir: {workdir}, {'goes on' if stored else 'new'}"
    yield "nothing was started or written"


def _check_parent(path: epath.Path) -> None:
    """Check that a local workdir that does not exist yet can be made."""
    if is_remote(path):
        return
    above = path.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"workdir {path} cannot be made in {above}: choose another with --workdir=DIR")
