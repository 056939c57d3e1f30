"""A task as a stateful environment with the interface of Gymnasium: `reset`, `step`, `close`.

A thin shell around `Environment.take`, for people and for other training stacks: it holds the current state, and
prepares the task on first use. Training itself holds states in its own pool and calls `take` through the queue.
"""

from __future__ import annotations

import numbers
import os
from pathlib import Path
from typing import Any, Self

from environments.actions import ACTIONS, ASSISTED_ACTIONS, PROFILES, describe_actions, describe_format
from environments.actions.second_model import Endpoint
from environments.files.blobs import open_store
from environments.protocol import Job, Outcome, OutcomeKind, Requirements, State
from environments.rewards import REWARDS
from environments.sandbox.base import Sandbox, SandboxError
from environments.seeds import execution_seed
from environments.step import Environment
from environments.tasks.task import TaskSpec


def default_cache_dir() -> Path:
    """Where prepared tasks, snapshots and executions are kept unless a caller says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlagent-jax"


class Episode:
    """One agent in one task.

    `step` returns `(observation, reward, terminated, truncated, info)`; `info["outcome"]` is the full `Outcome`,
    `info["state"]` the `State` it led to.
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
        """Begin at the task's initial state.

        Args:
          max_steps: number of steps after which `truncated` is True.
          owned_sandbox: closed together with the episode; None leaves the environment's sandbox to the caller.
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
        """What is known of the task without its data."""
        return self._task.spec

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """Start over. The observation is the prompt: tools, research problem, reply format and starting script.

        The executions' seed follows from `seed` from here on; the task's data stay the same.
        """
        if seed is not None:
            self._seed = seed
        self.state = self._environment.initial_state(self._task.key)
        return self.prompt(), {"state": self.state}

    def step(self, action: str, *, cut: bool = False) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one step; `action` is the raw text of a reply, `cut` whether a token limit cut it (then it is invalid).

        Raises:
          SandboxError: the environment failed, not the action: the same step can be tried again.
          TypeError: `action` is no text.
        """
        if not isinstance(action, str):
            raise TypeError(f"action is {action!r}; it must be the text of a reply")
        job = self.job(self.state, action, cut=cut)
        outcome = self.take(job)
        self.state = outcome.next_state(job)
        info = {"outcome": outcome, "state": self.state}
        return outcome.observation, outcome.reward, outcome.final, len(self.state.history) >= self.max_steps, info

    def job(self, state: State, action: str, *, cut: bool = False) -> Job:
        """The step that `action` is in `state`."""
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
        """Execute a step of `job`, wherever the episode stands.

        Raises:
          SandboxError: the environment failed, not the action: the same step can be tried again.
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
        """Score on the report half of the labels: of a submission (`Outcome.submission`), or of the starting script."""
        if submission is None:
            return self._task.report_init
        return self._task.grade_report(self._environment.store.get(submission))

    def prompt(self) -> str:
        """What an agent is told at the start."""
        spec = self.spec
        offered = ACTIONS | ASSISTED_ACTIONS if self._editor else ACTIONS
        return (
            f"You have access to the following tools:\n{describe_actions(self.profile, offered)}\n"
            f"Research Problem: {spec.description}\n\n"
            f"Always respond in this format exactly:\n{describe_format(self.profile)}\n\n"
            f"{spec.entry}:\n```python\n{self.state.script}\n```\n"
        )

    def close(self) -> None:
        """Close the cache, and the sandbox if it is the episode's own. Idempotent."""
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
) -> Episode:
    """An episode in the task called `task`, prepared on first use.

    Args:
      sandbox: name of a sandbox, or an open one, which stays open.
      profile: `full` or `compact`.
      reward: one of `environments.rewards`, with parameters where wanted: `improvement:neutral=0.2`.
      max_steps: after so many steps the episode is truncated.
      seed: of the task's data. The executions' seed follows from it one way (`environments.seeds`).
      cache_dir: folder of prepared tasks and snapshots; default `default_cache_dir()`.
      cache: keep executions, so that the same script on the same data runs once.
      editor: second language model; with one, `Edit Script (AI)` and `Understand File` are offered.

    Raises:
      TaskError: no such task.
      SandboxUnavailableError: this sandbox cannot run on this host.
      ValueError: another argument is not one of those above; it is named.
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
    tasks.get(task)  # A name that is not known is said so before a sandbox is started.
    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    owned = open_sandbox(sandbox) if isinstance(sandbox, str) else None
    opened = owned or sandbox
    try:
        prepared = tasks.prepare(task, root / "tasks", seed, opened)
        speed, store = HostSpeed(lambda: work_seconds(opened)), open_store(root / "store")
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
