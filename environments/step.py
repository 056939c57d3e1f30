"""The one implementation of a step, for training, evaluation, expert collection and interactive use.

`Environment.take` executes one action:

 1. Restore the state's workspace. The task's read-only files come from the task itself.
 2. Parse the action and apply it to the files.
 3. Run the script in the sandbox. An edit is followed by the entry script, which measures it.
 4. Read the submission once, safely, and grade those bytes outside the sandbox.
 5. Snapshot the workspace and return an `Outcome` with the reward.

A hit in the execution cache replaces steps 3 to 5.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path

from environments import rewards
from environments.actions import (
    ACTIONS,
    ASSISTED_ACTIONS,
    ActionError,
    ActionSpec,
    AgentFiles,
    Effect,
    Profile,
    observation,
    parse,
)
from environments.actions import profile as profile_by_name
from environments.actions.second_model import Editor, Endpoint
from environments.execution_cache import ExecutionCache, Measurement, cache_key
from environments.files.blobs import Store
from environments.files.hostile import HostileFileError, remove
from environments.files.snapshots import Snapshots
from environments.protocol import Job, Limits, Outcome, OutcomeKind, State
from environments.sandbox.base import Ending, Execution, Sandbox, SandboxError
from environments.sandbox.speed import HostSpeed, scaled
from environments.tasks.grading.isolated import tell
from environments.tasks.prepared import open_task
from environments.tasks.running import Run, run_in
from environments.tasks.task import GraderError, GraderLimitError, InvalidSubmissionError, PreparedTask
from environments.workspaces import Workspaces, default_scratch, read_script, shadows, snapshot

MAX_KEPT_TEXT = 20_000
"""Maximum characters kept of a script's standard output, of its standard error and of a diff (head and tail)."""
_LIMIT_KINDS = {
    Ending.TIME_LIMIT: OutcomeKind.TIME_LIMIT,
    Ending.MEMORY_LIMIT: OutcomeKind.MEMORY_LIMIT,
    Ending.OTHER_LIMIT: OutcomeKind.SCRIPT_ERROR,
}


def initial_state(task: PreparedTask, store: Store) -> State:
    """Return s_0 of a task: starting workspace, no history, metric of the starting script. Executes nothing."""
    return State(
        task=task.key,
        history=(),
        snapshot=snapshot(task, task.env, store),
        script=read_script(task.env / task.spec.entry),
        metric=task.scale.m_init,
    )


class Environment:
    """Takes steps in prepared tasks. Thread-safe: `take` may be called from several threads concurrently."""

    def __init__(
        self,
        tasks: Path,
        sandbox: Sandbox,
        store: Store,
        cache: bool | Path = True,
        scratch: Path | None = None,
        editor: Endpoint | None = None,
        speed: HostSpeed | None = None,
    ) -> None:
        """Open the environment.

        Args:
          tasks: folder of prepared tasks.
          cache: where to cache executions: `tasks/executions.sqlite` (True), another file, or nowhere (False). The
            cache is local to this host, see `TextCache`.
          scratch: folder for the workspaces of steps in flight; default `default_scratch()`.
          editor: second language model of `ASSISTED_ACTIONS`; its cache and log are in `tasks`. Only jobs that require
            it (`Requirements.guarantees` holds its id) may use these actions, so the result of a step does not depend
            on the worker.
          speed: speed of this host, by which CPU limits are scaled. None: no scaling.
        """
        self._tasks = tasks
        self.sandbox = sandbox
        self.store = store
        self._speed = speed
        self._opened: dict[str, PreparedTask] = {}
        self._lock = threading.Lock()
        self._workspaces = Workspaces(store, scratch or default_scratch())
        self._cache: ExecutionCache | None = None
        if cache is not False:
            self._cache = ExecutionCache(tasks / "executions.sqlite" if cache is True else cache)
        self._editor = None if editor is None else Editor(editor, tasks)

    def task(self, key: str) -> PreparedTask:
        """Return the prepared task called `key`; it is opened once.

        Raises:
          TaskError: the task is not prepared here, or its folder is broken.
        """
        with self._lock:
            if key not in self._opened:
                self._opened[key] = open_task(self._tasks, key)
            return self._opened[key]

    @property
    def editor_id(self) -> str | None:
        """Id of the second language model, if there is one."""
        return None if self._editor is None else self._editor.id

    def initial_state(self, task_key: str) -> State:
        """Return s_0 of the prepared task with this key; see the function `initial_state`."""
        return initial_state(self.task(task_key), self.store)

    def take(self, job: Job) -> Outcome:
        """Take one step. Any behaviour of action and script ends in a typed outcome.

        A failure of the host (sandbox, grader, store, disk) is an outcome too: `infrastructure_error`, which has no
        reward.

        Raises:
          TaskError: the job's task is not prepared here.
          ValueError: the job names an unknown reward or profile.
        """
        task = self.task(job.state.task)
        profile = profile_by_name(job.profile)
        rewards.REWARDS.choose(job.reward)  # Report a mistake before anything runs.
        before = Outcome(
            kind=OutcomeKind.NO_EDIT,
            observation="",
            snapshot=job.state.snapshot,
            script=job.state.script,
            metric_before=job.state.metric,
            metric_after=None,
            scale=task.scale,
            sandbox=self.sandbox.name,
        )
        try:
            outcome = self._step(job, task, profile, before)
        except (SandboxError, GraderError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
            outcome = dataclasses.replace(before, kind=OutcomeKind.INFRASTRUCTURE_ERROR, reason=reason)
        return dataclasses.replace(outcome, reward=rewards.compute(job.reward, outcome))

    def interrupt(self) -> None:
        """Close the sandbox and end graders, so that steps in flight and all later ones fail soon."""
        self.sandbox.close()
        self._end_graders()

    def _end_graders(self) -> None:
        with self._lock:
            opened = list(self._opened.values())
        for task in opened:
            task.close()

    def close(self) -> None:
        """Close the caches and end graders. The caller closes the sandbox and the store."""
        self._end_graders()
        if self._cache is not None:
            self._cache.close()
        if self._editor is not None:
            self._editor.close()

    def _step(self, job: Job, task: PreparedTask, profile: Profile, before: Outcome) -> Outcome:
        try:
            if job.truncated:
                raise ActionError("the reply was cut off at the token limit. Action did not execute.")
            action = parse(job.action, profile, self._offered(job))
        except ActionError as error:
            return _invalid(before, error, profile)
        parsed = dataclasses.replace(
            before,
            action_name=action.name,
            action_input=dict(action.arguments),
            progress=("parsed",),
            repairs=action.repairs,
        )
        with self._workspaces.open(task, job.state.snapshot) as root:
            files = AgentFiles(root, task.public, task.spec.read_only, shadows=shadows(task))
            try:
                effect = action.apply(files, ask=self._editor and self._editor.ask)
                runs = effect.measured or effect.execute is not None
                if runs:
                    remove(root / task.spec.submission)  # Not in the snapshot that the execution starts from.
                start, script = before.snapshot, before.script
                if runs or effect.changed:
                    start, script = snapshot(task, root, self.store), read_script(root / task.spec.entry)
            except ActionError as error:
                return _invalid(parsed, error, profile)
            except HostileFileError as error:
                return _invalid(parsed, ActionError(f"the workspace cannot be kept: {error}."), profile)
            applied = dataclasses.replace(
                parsed,
                snapshot=start,
                script=script,
                progress=("parsed", "applied"),
                final=effect.final,
                repairs=(*action.repairs, *effect.repairs),
                diff=observation.cut(effect.diff, MAX_KEPT_TEXT),
            )
            if runs:
                return self._execute(job, task, profile, applied, effect, root)
            return dataclasses.replace(applied, observation=observation.of_text(effect.message, profile))

    def _offered(self, job: Job) -> Mapping[str, ActionSpec]:
        """Return the actions available to a job, by name."""
        return ACTIONS | ASSISTED_ACTIONS if self.editor_id in job.requirements.guarantees else ACTIONS

    def _execute(
        self, job: Job, task: PreparedTask, profile: Profile, applied: Outcome, effect: Effect, root: Path
    ) -> Outcome:
        """Run a script in the workspace `root` and build the outcome from the result."""
        measurement, cached = self._measure(job, task, effect.execute or task.spec.entry, applied, root)
        kind = _judge(measurement, is_edit=effect.measured)
        stages = (
            ("submission_written", measurement.written),
            ("valid", measurement.metric is not None),
            ("scored", kind is OutcomeKind.SCORED),
        )
        return dataclasses.replace(
            applied,
            kind=kind,
            observation=observation.of_execution(
                effect.message, measurement.execution, measurement.problem, job.limits, profile
            ),
            snapshot=measurement.snapshot,
            script=measurement.script,
            metric_after=measurement.metric if kind is OutcomeKind.SCORED else None,
            progress=(*applied.progress, "started", *(name for name, reached in stages if reached)),
            seconds=measurement.execution.wall_seconds,
            cpu_seconds=measurement.execution.cpu_seconds,
            reason=measurement.reason or measurement.problem or _exit_reason(measurement.execution),
            submission=measurement.submission,
            cached=cached,
        )

    def _measure(
        self, job: Job, task: PreparedTask, script: str, applied: Outcome, root: Path
    ) -> tuple[Measurement, bool]:
        """Run `script` in the workspace `root`; return the result and whether it came from the cache."""
        assisted = self._editor is not None and applied.action_name in ASSISTED_ACTIONS
        key = cache_key(
            applied.snapshot,
            script,
            task.key,
            job.limits,
            job.seed,
            self.sandbox.name,
            self.sandbox.environment_digest,
            editor=self._editor.id if assisted else "",
            gpus=job.requirements.gpus,
        )
        if self._cache is not None:
            known = self._cache.get(key)
            if known is not None and self._is_kept(known, applied.snapshot):
                return known, True
        slowdown = self._speed.slowdown if self._speed else 1.0
        run = self._run(job, task, script, root, scaled(job.limits, slowdown))
        again = self._speed.again(run.execution, job.limits) if self._speed else None
        if again is None:
            measurement = self._inspect(task, run, applied, root)
        else:  # The host was slower than measured: not the script's fault.
            limits = scaled(job.limits, again, run.execution.wall_seconds)
            with self._workspaces.open(task, applied.snapshot) as fresh:
                measurement = self._inspect(task, self._run(job, task, script, fresh, limits), applied, fresh)
        if self._cache is not None:
            self._cache.put(key, measurement)
        return measurement, False

    def _run(self, job: Job, task: PreparedTask, script: str, root: Path, limits: Limits) -> Run:
        gpus = job.requirements.gpus
        return run_in(root, script, task.spec, self.sandbox, limits, data=task.public, seed=job.seed, gpus=gpus)

    def _is_kept(self, measurement: Measurement, before: str) -> bool:
        """Check whether every blob of a measurement is in the store, given that the workspace `before` is."""
        submission = [measurement.submission] if measurement.submission else []
        return Snapshots(self.store).is_whole(measurement.snapshot, submission, known=before)

    def _inspect(self, task: PreparedTask, run: Run, applied: Outcome, root: Path) -> Measurement:
        """Inspect what an execution left in `root`, all of it hostile, and grade its submission."""
        execution = dataclasses.replace(
            run.execution,
            stdout=observation.cut(observation.sanitise(run.execution.stdout), MAX_KEPT_TEXT),
            stderr=observation.cut(observation.sanitise(run.execution.stderr), MAX_KEPT_TEXT),
        )
        measurement = Measurement(execution, applied.snapshot, applied.script, written=run.written, problem=run.problem)
        if run.submission is not None:
            measurement = self._grade(task, run.submission, measurement)
        try:
            return dataclasses.replace(
                measurement, snapshot=snapshot(task, root, self.store), script=read_script(root / task.spec.entry)
            )
        except HostileFileError as error:
            problem = f"the script left a workspace that cannot be kept: {error}."
            return dataclasses.replace(measurement, metric=None, problem=problem)

    def _grade(self, task: PreparedTask, data: bytes, measurement: Measurement) -> Measurement:
        """Grade the submission from bytes read once, so that nothing can change them afterwards."""
        measurement = dataclasses.replace(measurement, submission=self.store.put(data))
        try:
            metric = task.grade(data)
            if not math.isfinite(metric):
                raise InvalidSubmissionError("its metric is not a finite number")
        except InvalidSubmissionError as error:
            cacheable = not isinstance(error, GraderLimitError)
            return dataclasses.replace(measurement, problem=f"invalid submission: {error}", cacheable=cacheable)
        except GraderError:
            raise
        except Exception as error:  # Only InvalidSubmissionError is the submission's fault.
            failure = GraderError(f"the grader raised {type(error).__name__}", traceback.format_exc())
            tell(task.key, failure, "host")
            raise failure from error
        return dataclasses.replace(measurement, metric=float(metric))


def _invalid(before: Outcome, error: ActionError, profile: Profile) -> Outcome:
    return dataclasses.replace(
        before,
        kind=OutcomeKind.INVALID_ACTION,
        observation=observation.of_error(error, profile),
        reason=error.reason,
    )


def _exit_reason(execution: Execution) -> str:
    """Return why a script failed, or an empty string if it did not."""
    return execution.detail or (f"exit code {execution.exit_code}" if execution.exit_code else "")


def _judge(measurement: Measurement, is_edit: bool) -> OutcomeKind:
    """Return the outcome kind of a step that ran a script, which also says whose fault a failure is."""
    execution = measurement.execution
    if execution.ending is not Ending.EXITED:
        return _LIMIT_KINDS[execution.ending]
    if execution.exit_code != 0 or measurement.problem:
        return OutcomeKind.SCRIPT_ERROR
    return OutcomeKind.SCORED if is_edit else OutcomeKind.NO_EDIT
