"""One run: its workdir, and everything that its stages share, opened once.

workdir/
  config.json  run.json          the settings; what is done, seconds by stage, executions, peak memory
  tasks/  store/  queue.db       the CPU hosts' side, unless the config names other places
  trajectories/  tokenizer/  checkpoints/  evaluation/  export/
  metrics.jsonl  report/  logs/

Of several processes (`parallelism.processes`) the first one alone writes there, checkpoints apart, and all read: the
workdir is on storage that they share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from rich.console import Console

from environments import tasks
from environments.actions.second_model import MODEL_VARIABLE, URL_VARIABLE, configured_endpoint, editor_id
from environments.files.blobs import open_store
from environments.protocol import Job, Requirements, State
from environments.queue import open_queue
from environments.sandbox import open_sandbox
from environments.step import initial_state
from environments.tasks.task import PreparedTask, TaskError, TaskSpec
from environments.worker.supervision import start_workers
from mlagent_jax.agents.episodes import Action
from mlagent_jax.agents.job_client import Collector
from mlagent_jax.agents.prompts import prompt_text
from mlagent_jax.checkpoints import hub
from mlagent_jax.parallelism import DEFAULT_RULES, make_mesh
from mlagent_jax.runtime import processes, trackers
from mlagent_jax.runtime.compilations import Compilations
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.host_memory import PeakMemory
from mlagent_jax.runtime.interruption import Interruption
from mlagent_jax.runtime.metrics import MetricsLog, NoMetrics
from mlagent_jax.runtime.progress import FILE as PROGRESS_FILE
from mlagent_jax.runtime.progress import Progress
from mlagent_jax.settings.agent_names import OF_THE_RUN, parse_agent
from mlagent_jax.settings.schema import Config, differences
from mlagent_jax.trajectories.record import Record
from mlagent_jax.trajectories.store import TrajectoryStore

VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "sentencepiece", "scikit-learn", "numpy")

EXECUTING = {"collect", "evaluate", "rl"}
"""Stages that hand out jobs; the others need neither queue nor workers, and export not even tasks."""

log = logging.getLogger(__name__)


class Run:
    """What the stages of one run share. Open with `Run.open`, close when done.

    Attributes:
      config: the settings.
      workdir: local folder or URL.
      name: of this run in the queue; unique, kept over restarts.
      tasks: prepared tasks by name, in the order of the config: training first.
      is_first: whether this process writes the workdir; of several only the first one does.
      metrics, collector, store, interruption: as their modules say.
      executes: whether actions are executed. Where they are not (`studies.sleeping`), what a run is worth is made up,
        and its workdir is not to be taken for a real one's.
    """

    executes: ClassVar[bool] = True

    def __init__(self, config: Config, workdir: epath.Path, facts: dict[str, Any], interruption: Interruption) -> None:
        self.config, self.workdir, self._facts, self.interruption = config, workdir, facts, interruption
        self.name: str = facts["name"]
        self.is_first = processes.is_first()
        self.metrics = MetricsLog(workdir) if self.is_first else NoMetrics()
        self.tasks: dict[str, PreparedTask] = {}
        self.collector: Collector | None = None
        try:
            self.mesh = make_mesh(config.mesh.shape)
            self.rules = DEFAULT_RULES.changed(config.mesh.rules)
        except ValueError as error:
            raise ConfigError(f"config.mesh: {error}") from error
        rows = self.rules.spec(("batch",), self.mesh)
        self._batch_sharding = NamedSharding(self.mesh, rows)
        self._compilations = Compilations()
        self._memory = PeakMemory(facts.get("peak_memory_gb", 0.0))
        self._closing = contextlib.ExitStack()
        self._closing.enter_context(jax.set_mesh(self.mesh))  # what constrains activations reads it
        self._closing.callback(self._memory.stop)
        self._closing.callback(self.metrics.close)
        if self.is_first and config.tracking.trackers:
            folder = os.fspath(self.host_folder / "trackers")
            settings, known = dataclasses.asdict(config), self.metrics.read()
            names, project = config.tracking.trackers, config.tracking.project
            self.metrics.tell(trackers.follow(names, project, self.name, settings, folder, known))

    @classmethod
    def open(cls, config: Config, workdir: str, interruption: Interruption | None = None) -> Self:
        """Check everything that can be checked before work is done, and open what the stages need.

        Raises:
          ConfigError: the workdir cannot be written, or belongs to a run of another config, or something that the
            config names is not there. A workdir belongs to a config once all of this is in order.
          SandboxUnavailableError: no sandbox, or not with the guarantees that the config asks for.
        """
        path = epath.Path(workdir)
        with contextlib.ExitStack() as held:

            def look() -> dict[str, Any]:
                _check_writable(path)
                _check_inputs(config)
                if "://" in workdir:
                    _check_remote(config, workdir)
                held.enter_context(_lock(path))
                return _facts(path, config, cls.executes)

            run = cls(config, path, processes.agree(look), interruption or Interruption())
            run._closing.push(held.pop_all())
        try:
            if set(config.stages) != {"export"}:
                run._prepare_tasks()
            if EXECUTING & set(config.stages):
                run._connect()
            if run.is_first:
                _write_json(path / "config.json", dataclasses.asdict(config))
                run._save_facts()  # its name above all: by it a run that is killed finds its jobs again
        except BaseException:
            run.close()
            raise
        return run

    # -- tasks and workers --

    @property
    def host_folder(self) -> Path:
        """Where what others write on this host is kept: the workdir, or of one in a bucket a temporary folder."""
        is_folder = "://" not in os.fspath(self.workdir)
        return Path(self.workdir) if is_folder else Path(tempfile.gettempdir(), f"mlagent-{self.name}")

    @property
    def task_folder(self) -> Path:
        """Prepared tasks, hidden labels included: local to this host, as they are to each worker's."""
        return Path(self.config.tasks.folder or self.workdir / "tasks")

    @property
    def specs(self) -> dict[str, TaskSpec]:
        """By the key `name@digest`."""
        return {task.key: task.spec for task in self.tasks.values()}

    def task_names(self, split: str) -> tuple[str, ...]:
        """Tasks to train on (`train`) or never trained on (`held_out`): embedded ones first, then micro-tasks."""
        config = self.config.tasks
        count = config.micro_train if split == "train" else config.micro_held_out
        # A folder or an entry point is called by the name in its task.yaml from here on.
        return (*(name for name, _ in self._named(split)), *tasks.micro.names(split, count, config.seed))

    def _named(self, split: str) -> list[tuple[str, str]]:
        """(name, what the config calls it) of each task that the config lists."""
        named = []
        for place in getattr(self.config.tasks, split):
            try:
                named.append((tasks.get(place).spec.name, place))
            except TaskError as error:
                raise ConfigError(f"config.tasks.{split}: {error}") from error
        return named

    def _prepare_tasks(self) -> None:
        places = dict(self._named("train") + self._named("held_out"))
        names = (*self.task_names("train"), *self.task_names("held_out"))
        if not names:
            raise ConfigError("config.tasks names no task: set config.tasks.train or config.tasks.micro_train")
        if twice := sorted(name for name in set(names) if names.count(name) > 1):
            raise ConfigError(f"config.tasks names {twice[0]!r} twice: a task is held in or held out, and there once")
        sandbox = open_sandbox(self.config.workers.sandbox, self.config.workers.guarantees)
        self._facts["sandbox"] = sandbox.name
        # Jobs are the same whoever hands them out.
        self._image = processes.agree(lambda: sandbox.environment_digest)

        def prepare() -> None:
            with self.progress("tasks", len(names)) as progress:
                for name in names:
                    if self.is_first:  # the others wait for it there, and are told
                        self.interruption.check()
                    self.tasks[name] = tasks.prepare(
                        places.get(name, name), self.task_folder, self.config.tasks.seed, sandbox
                    )
                    progress.update(1)

        with contextlib.closing(sandbox):
            processes.agree(prepare)
            if not self.is_first:  # which finds them where the first one left them, if that is on the same storage
                prepare()

    def _connect(self) -> None:
        workers = self.config.workers
        queue_url = workers.queue or f"sqlite:///{os.fspath(self.workdir / 'queue.db')}"
        if queue_url.startswith("sqlite") and len(hosts := set(processes.hosts())) > 1:
            raise ConfigError(
                f"config.workers.queue is {workers.queue!r}, a SQLite file, and this run is on {len(hosts)} hosts: "
                "name a postgresql:// one"
            )
        store_url = workers.store or os.fspath(self.workdir / "store")
        self.store = open_store(store_url)
        self.queue = self._closing.enter_context(contextlib.closing(open_queue(queue_url, store=self.store)))
        failure = None
        if workers.slots and self.is_first:
            check_editor(self.config)
            handle = start_workers(
                queue_url,
                tasks=self.task_folder,
                store_url=store_url,
                sandbox=self._facts["sandbox"],
                slots=workers.slots,
                log_path=self.host_folder / "logs" / "worker.log",
            )
            self._closing.callback(handle.stop)
            failure = handle.failure
        self.collector = Collector(self.queue, self.name, workers.silence_seconds, failure, self.interruption.check)

    # -- states, jobs, devices --

    def expert_records(self) -> list[Record]:
        """The expert's steps: another run's where `pool.trajectories` names its workdir, else this run's.

        Raises:
          ConfigError: nothing was collected, or in a task that this run does not have.
        """
        path = epath.Path(self.config.pool.trajectories or self.workdir) / "trajectories" / "collect"
        records, specs = list(TrajectoryStore.open(path)), self.specs
        for record in records:
            if record.state.task not in specs:
                raise ConfigError(
                    f"{path} holds steps in {record.state.task}, which is not among this run's prepared tasks: name "
                    "the tasks and the seed that they were collected with (config.tasks), or collect again"
                )
        return records

    def check_snapshots(self, states: Iterable[State]) -> None:
        """Look for the workspaces of recorded states in this run's store, one a task.

        Raises:
          ConfigError: one is missing, so that every job from such states would fail.
        """
        for state in {state.task: state for state in states}.values():
            if not self.store.has(state.snapshot):
                raise ConfigError(
                    f"the workspace of a collected state of {state.task_name} is not in the store {self.store.url}: "
                    "set config.workers.store to the one it was collected with (by default `store` in that workdir)"
                )

    def initial_state(self, name: str) -> State:
        """s_0 of a task: its starting workspace."""
        return initial_state(self.tasks[name], self.store)

    def prompt(self, state: State) -> str:
        """What an agent is shown in `state`, as text."""
        return prompt_text(self.config.prompt, self.specs[state.task], state)

    def job(self, state: State, action: Action, *, version: int, sample: int, reward: str) -> Job:
        """The job of taking `action` in `state`, for the reward of that name."""
        limits = self.tasks[state.task_name].spec.limits
        return Job(
            run=self.name,
            policy_version=version,
            state=state,
            sample=sample,
            action=action.text,
            truncated=action.truncated,
            reward=reward,
            profile=self.config.prompt.profile,
            limits=limits,
            requirements=Requirements(
                memory_mb=limits.memory_mb,
                gpus=self.tasks[state.task_name].spec.gpus,
                image=self._image,
                guarantees=(*self.config.workers.guarantees, *editor_required(self.config)),
            ),
            seed=self.config.seed,
        )

    @property
    def row_shards(self) -> int:
        """Shares that the mesh cuts a batch's rows into."""
        return math.prod(self.mesh.shape[axis] for axis in self.rules.mesh_axes("batch", self.mesh))

    def place(self, batch: Any) -> Any:
        """A pytree of host arrays on the devices, its first axis split over the mesh's data axes."""
        return jax.tree.map(lambda array: processes.split(array, self._batch_sharding), batch)

    def rows(self, batch: Any, rows: np.ndarray) -> Any:
        """Rows of a batch that is on the devices, split over them in turn."""
        return _take(batch, rows, self._batch_sharding)

    # -- book-keeping --

    @contextlib.contextmanager
    def stage(self, name: str, occurrence: int = 0) -> Iterator[bool]:
        """Time the `occurrence`-th stage called `name` and record that it is done; yields False where it was before."""
        key = f"{name}.{occurrence + 1}" if occurrence else name
        if key in self._facts["done"]:
            yield False
            return
        log.info("stage %s", key)
        started, before = time.monotonic(), self._facts["seconds"].get(key, 0.0)
        try:
            yield True
            processes.meet()  # what the first one wrote is there
            self._facts["done"].append(key)
            self._facts["executions"] += self._count_executions()
        finally:
            self._count_executions()  # of a stage that was interrupted: it gathers them again
            seconds = time.monotonic() - started
            self._facts["seconds"][key] = before + seconds
            compiled = self._compilations.take()
            log.info(
                "stage %s took %.0f s, %d compilations %.0f s of it",
                *(key, seconds, compiled["compilations"], compiled["compile_seconds"]),
            )
            self._save_facts()

    def _count_executions(self) -> int:
        return self.collector.take_executions() if self.collector is not None else 0

    def is_done(self, name: str) -> bool:
        """Whether the stage called `name` was run to its end in this workdir."""
        return name in self._facts["done"]

    def is_stopping(self) -> bool:
        """Whether this process, or another of the run, was told to stop; to be called by all, who are told then."""
        told = [signum for signum in processes.gather(lambda: self.interruption.signum) if signum is not None]
        if told:
            self.interruption.request(told[0])
        return bool(told)

    def stop_if_told(self) -> None:
        """Leave together where one of the processes was told to stop; to be called by all.

        Raises:
          Stopped: one was.
        """
        if self.is_stopping():
            self.interruption.check()

    def progress(self, stage: str, total: int, **options: Any) -> Progress:
        """Progress of `total` steps of a stage; see `reporting.progress`."""
        if not self.is_first:
            return Progress(stage, total, console=Console(quiet=True), **options)
        return Progress(stage, total, path=self.workdir / PROGRESS_FILE, **options)

    def _save_facts(self) -> None:
        if not self.is_first:
            return
        self._facts["peak_memory_gb"] = self._memory.peak_gb
        _write_json(self.workdir / "run.json", self._facts)

    def close(self) -> None:
        """Stop the workers of this host and close what is open. Idempotent."""
        self._save_facts()
        self._closing.close()


@functools.partial(jax.jit, static_argnums=2)
def _take(batch: Any, rows: jax.Array, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array[rows], sharding), batch)


def editor_required(config: Config) -> tuple[str, ...]:
    """Id of the second model that jobs require of their workers, if prompts offer its actions."""
    return (editor_id(config.prompt.editor),) if config.prompt.editor else ()


def check_editor(config: Config) -> None:
    """See that workers started on this host, which inherit its environment variables, will have the second model.

    Raises:
      ConfigError: they name none, or another.
    """
    try:
        endpoint = configured_endpoint()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if (required := editor_required(config)) and (endpoint is None or endpoint.id not in required):
        raise ConfigError(
            f"config.prompt.editor is {config.prompt.editor!r}, and this host's workers would have "
            f"{endpoint.model if endpoint else 'no second model'}: set ${URL_VARIABLE} and ${MODEL_VARIABLE}, or "
            "config.workers.slots to 0 where workers are started elsewhere"
        )


def _check_writable(workdir: epath.Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"workdir {workdir} cannot be written ({error}): choose another with --workdir=DIR"
        ) from error


@contextlib.contextmanager
def _lock(workdir: epath.Path) -> Iterator[None]:
    """Keep a second trainer out of a local workdir for as long as this process lives, however it ends."""
    if "://" in os.fspath(workdir):
        yield
        return
    with open(workdir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is at work in {workdir}: wait for it, stop it, or choose another --workdir"
            ) from error
        yield


def _check_inputs(config: Config) -> None:
    """Look for what the config names and only a later stage will read, and what several processes cannot do."""
    trackers.check_installed(config.tracking.trackers)
    asking = "endpoint" in (config.collect.expert, config.ideas.source, config.ideas.embedder)
    if asking and "collect" in config.stages and processes.count() > 1:
        raise ConfigError(
            f"config.stages has collect, which would ask config.endpoint in each of {processes.count()} processes: "
            "collect in one process, and name its workdir in config.pool.trajectories"
        )
    checkpoint, trajectories = config.policy.checkpoint, config.pool.trajectories
    there = hub.is_hub_id(checkpoint) or (epath.Path(checkpoint) / "config.json").exists()
    if checkpoint and not there and _needs_policy(config):
        raise ConfigError(
            f"config.policy.checkpoint is {checkpoint!r}; that folder has no config.json: name a Hugging Face "
            "checkpoint, for example the export of another run"
        )
    if trajectories:
        try:
            TrajectoryStore.open(epath.Path(trajectories) / "trajectories" / "collect")
        except ConfigError as error:
            raise ConfigError(
                f"config.pool.trajectories is {trajectories!r}: {error}; or name the workdir of another run"
            ) from error


def _check_remote(config: Config, workdir: str) -> None:
    """Look for what cannot be kept in a bucket."""
    stages = set(config.stages)
    asking = "collect" in stages and "endpoint" in (config.collect.expert, config.ideas.source, config.ideas.embedder)
    asking |= "evaluate" in stages and any(parse_agent(name).kind == "endpoint" for name in config.evaluate.policies)
    if asking:
        raise ConfigError(
            f"--workdir is {workdir}, and config.stages would ask config.endpoint, whose answers are kept in a "
            "database: do that in a workdir on this host, and name it in config.pool.trajectories"
        )
    for field, value, is_used, remedy in (
        ("tasks.folder", config.tasks.folder, stages != {"export"}, "a folder on this host"),
        ("workers.queue", config.workers.queue, EXECUTING & stages, "a postgresql:// one"),
    ):
        if is_used and not value:
            raise ConfigError(
                f"config.{field} is empty and would be in the workdir, {workdir}, a bucket: name {remedy}"
            )


def _needs_policy(config: Config) -> bool:
    """Whether a stage begins with `policy.checkpoint`: an evaluation of others alone does not."""
    if set(config.stages) != {"evaluate"}:
        return True
    return any(parse_agent(name).kind in OF_THE_RUN for name in config.evaluate.policies)


def _facts(workdir: epath.Path, config: Config, executes: bool) -> dict[str, Any]:
    """The facts so far of the run in a workdir that is new or this config's."""
    facts_path, stored = workdir / "run.json", workdir / "config.json"
    facts = json.loads(facts_path.read_text()) if facts_path.exists() else {}
    if stored.exists() and facts.get("executes", True) != executes:
        kinds = {True: "executes its actions", False: "only sleeps in their place (mlagent_jax.studies.sleeping)"}
        raise ConfigError(
            f"workdir {workdir} belongs to a run that {kinds[not executes]}, and this one {kinds[executes]}: choose "
            "another --workdir"
        )
    if stored.exists():
        differ = differences(json.loads(stored.read_text()), config)
        if differ:
            raise ConfigError(
                f"workdir {workdir} belongs to a run of another config; these fields differ: {'; '.join(differ)}. "
                "Choose another --workdir, or set the fields back"
            )
    facts["executes"] = executes
    facts.setdefault("name", f"{workdir.name}-{uuid.uuid4().hex[:8]}")
    facts.setdefault("done", [])
    facts.setdefault("seconds", {})
    facts.setdefault("executions", 0)
    facts["seed"] = config.seed
    facts["config"] = dataclasses.asdict(config)
    facts["versions"] = {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in VERSIONS
    }
    return facts


def _write_json(path: epath.Path, data: Any) -> None:
    partial = path.parent / f"{path.name}.partial"
    partial.write_text(json.dumps(data, indent=1))
    partial.replace(path)
