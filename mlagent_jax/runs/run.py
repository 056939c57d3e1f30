"""One run: the resources that its stages share, opened and closed once."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
from etils import epath
from rich.console import Console

from environments.files.blobs import open_store
from environments.protocol import Job, Requirements, State
from environments.queue import open_queue
from environments.sandbox import open_sandbox
from environments.sandbox.base import Sandbox
from environments.seeds import execution_seed
from environments.step import initial_state
from environments.tasks.task import TaskSpec
from environments.worker.supervision import start_workers
from mlagent_jax.agents.episodes import Action
from mlagent_jax.agents.job_client import JobClient
from mlagent_jax.agents.prompts import prompt_text
from mlagent_jax.models import precision
from mlagent_jax.runs import named_tasks
from mlagent_jax.runs.devices import Devices
from mlagent_jax.runs.inputs import check_editor, check_inputs, check_remote, editor_required, executing
from mlagent_jax.runs.run_tasks import RunSpecs, RunTasks
from mlagent_jax.runs.shapes import check_shapes
from mlagent_jax.runs.workdir import (
    check_binding,
    check_writable,
    host_folder,
    is_remote,
    read_facts,
    write_config,
    write_facts,
)
from mlagent_jax.runtime import processes, trackers
from mlagent_jax.runtime.compilations import Compilations, kept_in
from mlagent_jax.runtime.endings import Ending
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.files import sole_writer
from mlagent_jax.runtime.host_memory import PeakMemory
from mlagent_jax.runtime.interruption import Interruption
from mlagent_jax.runtime.metrics import MetricsLog, NoMetrics
from mlagent_jax.runtime.progress import FILE as PROGRESS_FILE
from mlagent_jax.runtime.progress import Progress
from mlagent_jax.runtime.timeline import FILE as TIMELINE_FILE
from mlagent_jax.runtime.timeline import Timeline
from mlagent_jax.settings.schema import Config
from mlagent_jax.trajectories.record import Record
from mlagent_jax.trajectories.store import TrajectoryStore

log = logging.getLogger(__name__)


class Run:
    """Resources that the stages of one run share. Open with `Run.open`, close when done.

    Attributes:
      config: Settings.
      workdir: Local folder or URL.
      name: Name of this run in the queue; unique, unchanged by restarts.
      tasks: Prepared tasks by name, in the order of the config: training first. Those of suites are prepared when they
        are first needed.
      devices: Mesh, sharding rules, and placement of rows.
      is_first: Whether this process writes the workdir; only the first of several does.
      metrics, timeline, job_client, store, interruption: See their modules.
      executes: Whether actions are executed. If False (`studies.sleeping`), rewards are simulated and the workdir is
        marked as such.
    """

    executes: ClassVar[bool] = True

    def __init__(self, config: Config, workdir: epath.Path, facts: dict[str, Any], interruption: Interruption) -> None:
        self.config, self.workdir, self._facts, self.interruption = config, workdir, facts, interruption
        self._bound = False  # whether the workdir belongs to this config
        self.name: str = facts["name"]
        self.is_first = processes.is_first()
        self._sandbox: Sandbox | None = None
        self.metrics = MetricsLog(workdir) if self.is_first else NoMetrics()
        self.tasks = RunTasks(self.task_folder, config.tasks.seed, self._task_sandbox)
        self.job_client: JobClient | None = None
        self.devices = Devices.of(config.mesh)
        self._compilations = Compilations()
        self._closing = contextlib.ExitStack()
        self._memory = PeakMemory(facts.get("peak_memory_gb", 0.0))
        self._closing.enter_context(jax.set_mesh(self.devices.mesh))  # read by the constraints on activations
        self._closing.enter_context(kept_in(self.host_folder / "xla"))
        self._closing.enter_context(precision.in_effect(config.policy))
        self._closing.callback(self._memory.stop)
        self._closing.callback(self.metrics.close)
        profile = config.profile
        self.timeline = Timeline(
            workdir / TIMELINE_FILE if self.is_first else None,
            self.host_folder / "profile",
            {"sft": profile.numbers("steps"), "rl": profile.numbers("iterations")},
        )
        self._closing.callback(self.timeline.close)
        if self.is_first and config.tracking.trackers:
            folder = os.fspath(self.host_folder / "trackers")
            settings, known = dataclasses.asdict(config), self.metrics.read()
            names, project = config.tracking.trackers, config.tracking.project
            self.metrics.add_followers(trackers.follow(names, project, self.name, settings, folder, known))

    @classmethod
    def open(cls, config: Config, workdir: str, interruption: Interruption | None = None) -> Self:
        """Check everything that can be checked before any work, and open the resources that the stages need.

        Raises:
          ConfigError: The workdir cannot be written or belongs to a run of another config, or an input of the config is
            missing. A workdir is bound to a config only after all checks.
          SandboxUnavailableError: No sandbox, or none with the configured guarantees.
        """
        path = epath.Path(workdir)
        with contextlib.ExitStack() as resources:

            def check() -> dict[str, Any]:
                check_binding(path, config, cls.executes)
                check_inputs(config)
                if cls.executes and set(config.stages) != {"export"}:
                    named_tasks.places(config)
                if is_remote(path):
                    check_remote(config, path)
                check_writable(path)
                resources.enter_context(sole_writer(path, "wait for it, stop it, or choose another --workdir"))
                return read_facts(path, config, cls.executes)

            run = cls(config, path, processes.agree(check), interruption or Interruption())
            run._closing.push(resources.pop_all())
        try:
            check_shapes(config, run.devices)
            if set(config.stages) != {"export"}:
                run._prepare_tasks()
            if executing(config):
                run._connect()
            if run.is_first:
                write_config(path, config)
                run._bound = True
                run._save_facts()  # a killed run finds its jobs again by this name
        except BaseException:
            run.close()
            raise
        run._open_log()
        return run

    def _open_log(self) -> None:
        """Copy this process's log, with the ends of all displays of progress, to the workdir (on this host)."""
        index = processes.index()
        path = self.host_folder / "logs" / ("trainer.log" if not index else f"trainer-{index}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handler.setLevel(logging.DEBUG)
        root = logging.getLogger("mlagent_jax")
        root.addHandler(handler)
        self._closing.callback(lambda: (root.removeHandler(handler), handler.close()))

    # -- tasks and workers --

    @property
    def host_folder(self) -> Path:
        """Return the folder for files of other programs on this host: the workdir, or a temporary folder if that is in
        a bucket."""
        return host_folder(self.workdir, self.name)

    @property
    def task_folder(self) -> Path:
        """Return the folder of prepared tasks, hidden labels included; local to this host, like each worker's."""
        return Path(self.config.tasks.folder or self.workdir / "tasks")

    @property
    def specs(self) -> Mapping[str, TaskSpec]:
        """Return task specs by the key `name@digest`."""
        return RunSpecs(self.tasks)

    def task_names(self, split: str) -> tuple[str, ...]:
        """Return tasks to train on (`train`) or never trained on (`held_out`): those that the config lists first, then
        micro-tasks."""
        return named_tasks.names(self.config, split)

    def _task_sandbox(self) -> Sandbox:
        """Return the sandbox in which tasks are prepared; it stays open if some are left for later."""
        if self._sandbox is None:
            workers = self.config.workers
            self._sandbox = open_sandbox(workers.sandbox, workers.guarantees)
            self._closing.callback(self._close_sandbox)
        return self._sandbox

    def _close_sandbox(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def _prepare_tasks(self) -> None:
        places = list(named_tasks.places(self.config).values())
        for place in places:
            self.tasks.add(place)
        sandbox = self._task_sandbox()
        self._facts["sandbox"] = sandbox.name
        # Jobs do not depend on the process that submits them.
        self._image = processes.agree(lambda: sandbox.environment_digest)
        # Several processes agree on tasks at the start; one alone leaves a suite's for when they are needed, except
        # the first: workers start only where some task is.
        later = {place.name for place in places[1:] if place.lazy and jax.process_count() == 1}
        names = [place.name for place in places if place.name not in later]

        def prepare() -> None:
            with self.progress("tasks", len(names)) as progress:
                for name in names:
                    if self.is_first:  # the others wait for the first process and stop with it
                        self.interruption.check()
                    _ = self.tasks[name]
                    progress.update(1)

        try:
            processes.agree(prepare)
            if not self.is_first:  # finds the first process's tasks on shared storage
                prepare()
        finally:
            if not later:
                self._close_sandbox()

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
        self.job_client = JobClient(self.queue, self.name, workers.silence_seconds, failure, self.interruption.check)

    # -- states and jobs --

    def expert_records(self) -> list[Record]:
        """Return the expert's steps: another run's if `pool.trajectories` names its workdir, else this run's.

        Raises:
          ConfigError: Nothing was collected, or in a task that this run does not have.
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
        """Check that workspaces of recorded states are in this run's store, one per task.

        Raises:
          ConfigError: One is missing, so that every job from such states would fail.
        """
        for state in {state.task: state for state in states}.values():
            if not self.store.has(state.snapshot):
                raise ConfigError(
                    f"the workspace of a collected state of {state.task_name} is not in the store {self.store.url}: "
                    "set config.workers.store to the one it was collected with (by default `store` in that workdir)"
                )

    def initial_state(self, name: str) -> State:
        """Return s_0 of a task: its starting workspace. If prompts name the kind of step, the first is a draft."""
        state = initial_state(self.tasks[name], self.store)
        return dataclasses.replace(state, operator="draft") if self.config.prompt.operators else state

    def prompt(self, state: State) -> str:
        """Return the prompt for `state`, as text."""
        return prompt_text(self.config.prompt, self.specs[state.task], state)

    def job(self, state: State, action: Action, *, version: int, sample: int, reward: str) -> Job:
        """Return the job of taking `action` in `state`, for the reward of that name."""
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
            seed=execution_seed(self.config.seed),
        )

    # -- stages --

    @contextlib.contextmanager
    def stage(self, name: str, occurrence: int = 0) -> Iterator[bool]:
        """Time the `occurrence`-th stage called `name` and record its completion; yield False if it was done before."""
        key = f"{name}.{occurrence + 1}" if occurrence else name
        if key in self._facts["done"]:
            yield False
            return
        log.info("stage %s", key)
        started, before = time.monotonic(), self._facts["seconds"].get(key, 0.0)
        try:
            yield True
            processes.meet()  # files of the first process are visible
            self._facts["done"].append(key)
            self._facts["executions"] += self._count_executions()
        finally:
            self._count_executions()  # discard an interrupted stage's count: it gathers again
            seconds = time.monotonic() - started
            self._facts["seconds"][key] = before + seconds
            compiled = self._compilations.take()
            log.info(
                "stage %s: %.0f s, including %d compilations in %.0f s",
                *(key, seconds, compiled["compilations"], compiled["compile_seconds"]),
            )
            self._save_facts()

    def _count_executions(self) -> int:
        return self.job_client.take_executions() if self.job_client is not None else 0

    def is_done(self, name: str) -> bool:
        """Return whether the stage called `name` was completed in this workdir."""
        return name in self._facts["done"]

    def is_stopping(self) -> bool:
        """Return whether any process of the run received a signal; all processes must call it and then know."""
        signums = [signum for signum in processes.gather(lambda: self.interruption.signum) if signum is not None]
        if signums:
            self.interruption.request(signums[0])
        return bool(signums)

    def stop_if_requested(self) -> None:
        """Stop all processes together if one received a signal; all processes must call it.

        Raises:
          Stopped: One did.
        """
        if self.is_stopping():
            self.interruption.check()

    def progress(self, stage: str, total: int, **options: Any) -> Progress:
        """Return the progress display of `total` steps of a stage; see `runtime.progress`."""
        if not self.is_first:
            return Progress(stage, total, console=Console(quiet=True), **options)
        return Progress(stage, total, path=self.workdir / PROGRESS_FILE, **options)

    def end(self, ending: Ending) -> None:
        """Record why the run ends, in run.json and in the log of the workdir; the command tells it on the screen."""
        log.debug("the run ends: %s: %s", ending.kind, ending.reason)
        self._facts["ended"] = {**ending.to_dict(), "time": time.time()}
        self._save_facts()

    def _save_facts(self) -> None:
        if not (self.is_first and self._bound):
            return
        self._facts["peak_memory_gb"] = self._memory.peak_gb
        write_facts(self.workdir, self._facts)

    def close(self) -> None:
        """Stop the workers of this host and release all resources. Idempotent."""
        with self._closing:  # a full disk keeps the facts from being written, and everything is released all the same
            self._save_facts()
