"""A run of the RL loop whose executions sleep: the real trainer, sampler, queue and collector; no task, no sandbox.

What a step is worth is a function of its text, so that a run is the same whenever its jobs are done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from etils import epath

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from environments.queue import open_queue
from environments.queue.base import Capabilities, RewardQueue
from environments.tasks.base import TaskSpec
from mlagent_jax.agent.collector import Collector
from mlagent_jax.config import Config
from mlagent_jax.data.trajectories import Record
from mlagent_jax.interruption import Interruption
from mlagent_jax.run import Run

SPEC = TaskSpec("sleep", "tabular", "train", "accuracy", "Sleep.", "tabular, 100 rows", "made up")
_POLL_SECONDS = 0.02
_SILENCE_SECONDS = 60.0


def made_up_states(count: int, lines: int) -> list[State]:
    """Different states of one task, with scripts of so many lines."""
    return [
        State("sleep@0", (), "0" * 64, "".join(f"x{row} = {index + row}\n" for row in range(lines)), 0.5)
        for index in range(count)
    ]


def outcome_of(job: Job, seconds: float) -> Outcome:
    """What `job` comes to: a metric that follows from the text of its action."""
    drawn = int.from_bytes(hashlib.sha256(job.action.encode()).digest()[:4], "big") / 2**32
    return Outcome(
        kind=OutcomeKind.SCORED,
        observation="done\n",
        snapshot="0" * 64,
        script=job.state.script,
        metric_before=job.state.metric,
        metric_after=drawn,
        scale=Scale(0.5, 1.0, True),
        reward=drawn,
        progress=("parsed", "applied", "started", "submission_written", "valid", "scored"),
        seconds=seconds,
    )


class SleepingRun(Run):
    """A run with workers in threads of this process, which sleep for each job. Close it when done.

    Args:
      config: stages ("rl",), and a checkpoint as the policy.
      workdir: a local folder.
      states: what the pool holds.
      workers: how many jobs are under way at once.
      seconds: an execution's.
    """

    def __init__(self, config: Config, workdir: Path, states: list[State], workers: int, seconds: float) -> None:
        facts = {"name": "sleeping", "done": [], "seconds": {}, "executions": 0}
        workdir.mkdir(parents=True, exist_ok=True)
        super().__init__(config, epath.Path(workdir), facts, Interruption())
        self.tasks = {"sleep": types.SimpleNamespace(key="sleep@0", spec=SPEC)}
        self._states, self._seconds, self._image = states, seconds, None
        self._stop = threading.Event()
        self.queue: RewardQueue = open_queue(f"sqlite:///{workdir / 'queue.db'}")
        self._closing.callback(self.queue.close)
        self.collector = Collector(self.queue, self.name, _SILENCE_SECONDS)
        threads = [threading.Thread(target=self._work, args=(f"worker-{i}",), daemon=True) for i in range(workers)]
        for thread in threads:
            thread.start()
            self._closing.callback(thread.join)
        self._closing.callback(self._stop.set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def expert_records(self) -> list[Record]:
        first = dataclasses.replace(outcome_of(Job(self.name, 0, self._states[0], 0, ""), 0.0), final=False)
        return [Record("collect", "train", "sleep", 0, 0, "", state, "", first) for state in self._states]

    def check_snapshots(self, states: Iterable[State]) -> None:
        """There are none to look for."""

    def _work(self, name: str) -> None:
        offered = Capabilities(memory_mb=1 << 20, guarantees=frozenset(self.config.workers.guarantees))
        with self.queue.watch() as changes:
            while not self._stop.is_set():
                lease: Any = self.queue.claim(name, offered)
                if lease is None:
                    changes.wait(_POLL_SECONDS)
                    continue
                self._stop.wait(self._seconds)
                self.queue.complete(lease, outcome_of(lease.job, self._seconds))
