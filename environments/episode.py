"""A task as a stateful environment with Gymnasium's interface: `reset`, `step`, `close`.

A thin wrapper of `Environment.take`, for interactive use and other training stacks. It holds the current state and
prepares the task on first use. Training keeps states in its own pool and calls `take` through the queue.
"""

from __future__ import annotations

import numbers
import os
from pathlib import Path
from typing import Any, Self

from environments.actions import ACTIONS, ASSISTED_ACTIONS, PROFILES, describe_actions, describe_format
from environments.actions.second_model import Endpoint
from environments.files.blobs import Store, open_store
from environments.files.hostile import place
from environments.files.snapshots import Snapshots
from environments.protocol import Job, Outcome, OutcomeKind, Requirements, Scale, State
from environments.rewards import REWARDS
from environments.sandbox.base import Sandbox, SandboxError
from environments.seeds import execution_seed
from environments.step import Environment
from environments.tasks.task import TaskSpec
from environments.workspaces import read_only_files


def default_cache_dir() -> Path:
    """Return the default folder of prepared tasks, snapshots and cached executions."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlagent-jax"


class Episode:
    """One agent in one task.

    `step` returns `(observation, reward, terminated, truncated, info)`. `info["outcome"]` is the full `Outcome`,
    `info["state"]` the next `State`.
    """

    def __init__(
        self,
        environment: Environment,
        task_key: str,
        *,
        profile: str = "compact",
        reward: str = "improvement",
        max_steps: int = 15,
        seed: int = 0,
        owned_sandbox: Sandbox | None = None,
    ) -> None:
        """Start at the task's initial state.

        Args:
          max_steps: number of steps after which `truncated` is True.
          owned_sandbox: sandbox to close together with the episode; None leaves the environment's sandbox to the
            caller.
        """
        self._environment = environment
        self._task = environment.task(task_key)
        self.profile = profile
        self._reward = reward
        self.max_steps = max_steps
        self._seed = seed
        self._owned_sandbox = owned_sandbox
        self._editor = environment.editor_id
        self.state: State = environment.initial_state(task_key)

    @property
    def spec(self) -> TaskSpec:
        """Description of the task, without its data."""
        return self._task.spec

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """Start over. The observation is the prompt: tools, research problem, reply format and starting script.

        Args:
          seed: seed of later executions, if given; the task's data stay the same.
        """
        if seed is not None:
            self._seed = seed
        self.state = self._environment.initial_state(self._task.key)
        return self.prompt(), {"state": self.state}

    def step(self, action: str, *, cut: bool = False) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one step.

        Args:
          action: raw text of a reply.
          cut: whether a token limit cut the reply, which makes it invalid.

        Raises:
          SandboxError: the environment failed, not the action: the same step can be retried.
          TypeError: `action` is not a string.
        """
        if not isinstance(action, str):
            raise TypeError(f"action is {action!r}; it must be the text of a reply")
        job = self.job(self.state, action, cut=cut)
        outcome = self.take(job)
        self.state = outcome.next_state(job)
        info = {"outcome": outcome, "state": self.state}
        return outcome.observation, outcome.reward, outcome.final, len(self.state.history) >= self.max_steps, info

    def job(self, state: State, action: str, *, cut: bool = False) -> Job:
        """Return the job that executes `action` in `state`."""
        return Job(
            run="episode",
            policy_version=0,
            state=state,
            sample=0,
            action=action,
            truncated=cut,
            reward=self._reward,
            profile=self.profile,
            limits=self.spec.limits,
            requirements=Requirements(gpus=self.spec.gpus, guarantees=(self._editor,) if self._editor else ()),
            seed=execution_seed(self._seed),
        )

    def take(self, job: Job) -> Outcome:
        """Execute `job`, which may start from any state, and leave the episode's state unchanged.

        Raises:
          SandboxError: the environment failed, not the action: the same step can be retried.
        """
        outcome = self._environment.take(job)
        if outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR:
            raise SandboxError(outcome.reason)
        return outcome

    @property
    def task_key(self) -> str:
        """`name@digest` of the prepared task."""
        return self._task.key

    def report_score(self, submission: str | None) -> float:
        """Return the score on the report half of the labels.

        Args:
          submission: id of a submission (`Outcome.submission`); None for the starting script's.
        """
        if submission is None:
            return self._task.report_init
        return self._task.grade_report(self._environment.store.get(submission))

    def submission(self, identity: str) -> bytes:
        """Return the bytes of a submission (`Outcome.submission`)."""
        return self._environment.store.get(identity)

    @property
    def start_submission(self) -> bytes | None:
        """Submission of the starting script; None if the task states its score instead."""
        return self._task.start_submission

    def resampled(self, submission: str | None, draws: int, seed: int) -> list[list[float | None]] | None:
        """Return the score on resamples of the reward half (see `FolderTask.resampled`).

        Args:
          submission: id of a submission; None for the starting script's.
        """
        if submission is not None:
            return self._task.resampled(self._environment.store.get(submission), draws, seed)
        start = self.start_submission
        return None if start is None else self._task.resampled(start, draws, seed)

    def export(self, snapshot: str, folder: Path) -> None:
        """Restore a workspace into `folder`, which must not exist, with the task's read-only files. Left out are the
        submission, and symbolic links, which may lead anywhere."""
        Snapshots(self._environment.store).restore(snapshot, folder)
        for path in [path for path in folder.rglob("*") if path.is_symlink()]:
            path.unlink()
        (folder / self.spec.submission).unlink(missing_ok=True)
        for name in read_only_files(self._task):
            place(folder, name, (self._task.env / name).read_bytes())

    @property
    def store(self) -> Store:
        """Store of snapshots and submissions."""
        return self._environment.store

    @property
    def public(self) -> Path:
        """Folder of the task's public data."""
        return self._task.public

    @property
    def scale(self) -> Scale:
        """Reference points of the metric on the reward half."""
        return self._task.scale

    @property
    def image(self) -> str:
        """Digest of the Python environment that scripts run in."""
        return self._environment.sandbox.environment_digest

    def reward_score(self, submission: str) -> float:
        """Return the score of a submission on the reward half.

        Raises:
          InvalidSubmissionError: it is not a complete table of valid predictions.
        """
        return self._task.grade(self._environment.store.get(submission))

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of cell (`tables.KINDS`) by column of a submission, without the ids; empty if the task does not say."""
        return self._task.grader.kinds

    def prompt(self) -> str:
        """Return the agent's first prompt."""
        spec = self.spec
        offered = ACTIONS | ASSISTED_ACTIONS if self._editor else ACTIONS
        return (
            f"You have access to the following tools:\n{describe_actions(self.profile, offered)}\n"
            f"Research Problem: {spec.description}\n\n"
            f"Always respond in this format exactly:\n{describe_format(self.profile)}\n\n"
            f"{spec.entry}:\n```python\n{self.state.script}\n```\n"
        )

    def close(self) -> None:
        """Close the environment, and the sandbox if the episode owns it. Idempotent."""
        self._environment.close()
        if self._owned_sandbox is not None:
            self._owned_sandbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def make(
    task: str,
    *,
    sandbox: str | Sandbox = "bubblewrap",
    profile: str = "compact",
    reward: str = "improvement",
    max_steps: int = 15,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    cache: bool = True,
    editor: Endpoint | None = None,
    store: Store | None = None,
) -> Episode:
    """Open an episode in the task called `task`, which is prepared on first use.

    Args:
      sandbox: name of a sandbox, or an open sandbox, which the caller closes.
      profile: `full` or `compact`.
      reward: name of a reward in `environments.rewards`, with optional parameters: `improvement:neutral=0.2`.
      max_steps: number of steps after which the episode is truncated.
      seed: seed of the task's data. The executions' seed is a one-way function of it (`environments.seeds`).
      cache_dir: folder of prepared tasks and snapshots; default `default_cache_dir()`.
      cache: whether to cache executions, so that the same script on the same data runs once.
      editor: second language model; enables `Edit Script (AI)` and `Understand File`.
      store: store of snapshots; default: `store` in `cache_dir`.

    Raises:
      TaskError: no such task.
      SandboxUnavailableError: this sandbox cannot run on this host.
      ValueError: an argument is invalid; the message names it.
    """
    from environments import tasks
    from environments.sandbox import open_sandbox
    from environments.sandbox.speed import HostSpeed, work_seconds

    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; choose one of {', '.join(PROFILES)}")
    REWARDS.choose(reward)
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps is {max_steps!r}; it must be a whole number from 1")
    if not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"seed is {seed!r}; it must be a whole number from 0")
    tasks.get(task)  # Report an unknown name before a sandbox starts.
    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    owned = open_sandbox(sandbox) if isinstance(sandbox, str) else None
    opened = owned or sandbox
    try:
        prepared = tasks.prepare(task, root / "tasks", seed, opened)
        speed, store = HostSpeed(lambda: work_seconds(opened)), store or open_store(root / "store")
        environment = Environment(root / "tasks", opened, store, cache=cache, editor=editor, speed=speed)
        return Episode(
            environment,
            prepared.key,
            profile=profile,
            reward=reward,
            max_steps=max_steps,
            seed=seed,
            owned_sandbox=owned,
        )
    except BaseException:
        if owned is not None:
            owned.close()
        raise
