"""Run of the RL loop with sleeping executions: the real trainer, sampler, queue and job client; no task, no sandbox.

    python -m mlagent_jax.studies.sleeping --config=FILE --workdir=DIR --seconds=5 --workers=4 [--config.rl.states=4]

For studies and benchmarks of time only. A step's reward is derived from its text, so that a run does not depend on when
its jobs finish, and sleeping leaves the machine to the policy. No config setting leads here: `mlagent_jax.train` always
executes. The queue is a file in the workdir, which no real worker or trainer shares. `mlagent_jax.train` rejects this
workdir, and this program rejects a real run's.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import threading
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from absl import flags
from ml_collections import config_flags

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from environments.queue import open_queue
from environments.queue.base import Capabilities
from environments.tasks.task import TaskSpec
from mlagent_jax.agents.episodes import Reply
from mlagent_jax.agents.job_client import JobClient
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime.commands import EXPECTED_ERRORS, log_plainly
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.interruption import Interruption, Stopped, leave
from mlagent_jax.settings.flags import parse_flags
from mlagent_jax.settings.schema import Config, freeze
from mlagent_jax.trajectories.record import Record

SPEC = TaskSpec("sleep", "tabular", "train", "accuracy", "Sleep.", "tabular, 100 rows", "made up")
_POLL_SECONDS = 0.02
_SILENCE_SECONDS = 60.0
_SCRIPT_LINES = 16


def made_up_states(count: int, lines: int = _SCRIPT_LINES) -> list[State]:
    """Return distinct states of one task, with scripts of `lines` lines and equal length, so that few programs are
    compiled."""
    return [
        State("sleep@0", (), "0" * 64, "".join(f"x{row} = {100 + index + row}\n" for row in range(lines)), 0.5)
        for index in range(count)
    ]


def make_policy(config: Config, folder: Path, states: Sequence[State]) -> None:
    """Write a checkpoint of random weights, with the config's shape of a policy from scratch.

    Raises:
      ConfigError: `tokenizer.vocab_size` is larger than the states' scripts support, or too small.
    """
    import jax

    from mlagent_jax import models
    from mlagent_jax.agents.prompts import COMPACT_WORDS
    from mlagent_jax.checkpoints import hugging_face
    from mlagent_jax.models.tokenizer import train_tokenizer
    from mlagent_jax.runs.shapes import shape_from_scratch

    corpus = [*(state.script for state in states), "Task: tabular; accuracy up\nAction: Edit Script (Cell)\n"]
    partial = folder.with_name(f"{folder.name}.tokenizer")
    try:
        tokenizer = train_tokenizer(corpus, config.tokenizer.vocab_size, COMPACT_WORDS, partial)
    except ValueError as error:
        raise ConfigError(f"config.tokenizer: {error}") from error
    shape = shape_from_scratch(config.policy, tokenizer.vocab_size)
    _, params = models.create(shape, jax.random.key(config.seed))
    hugging_face.save(folder, shape, params, tokenizer)


def outcome_of(job: Job, seconds: float) -> Outcome:
    """Return the simulated outcome of `job`: a metric derived from the text of its action."""
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
    """Run with workers in threads of this process, which sleep for each job. Open with `sleeping_run`."""

    executes: ClassVar[bool] = False

    def start(self, states: Sequence[State], workers: int, seconds: float) -> None:
        """Use `states` as the expert's, and start `workers` threads that sleep `seconds` for each job."""
        self._states, self._seconds = states, seconds
        if self.job_client is None:  # a run that replays batches
            return
        stop = threading.Event()
        threads = [threading.Thread(target=self._work, args=(f"worker-{i}", stop), daemon=True) for i in range(workers)]
        for thread in threads:
            thread.start()
            self._closing.callback(thread.join)
        self._closing.callback(stop.set)

    def expert_records(self) -> list[Record]:
        job = self.job(self._states[0], Reply(""), version=0, sample=0, reward="improvement")
        first = outcome_of(job, 0.0)
        return [Record("collect", "train", "sleep", 0, 0, "", state, "", first) for state in self._states]

    def check_snapshots(self, states: Iterable[State]) -> None:
        """Do nothing: there are no snapshots."""

    def _prepare_tasks(self) -> None:
        self.tasks = {"sleep": types.SimpleNamespace(key="sleep@0", spec=SPEC)}
        self._image = None

    def _connect(self) -> None:
        if self.config.workers.queue:
            raise ConfigError(
                f"config.workers.queue is {self.config.workers.queue!r}; a run whose executions sleep has a queue of "
                "its own, which no real one shares: leave it empty"
            )
        self.queue = self._closing.enter_context(contextlib.closing(open_queue(f"sqlite:///{self.workdir}/queue.db")))
        self.job_client = JobClient(self.queue, self.name, _SILENCE_SECONDS, check=self.interruption.check)

    def _work(self, name: str, stop: threading.Event) -> None:
        offered = Capabilities(memory_mb=1 << 20, guarantees=frozenset(self.config.workers.guarantees))
        with self.queue.watch() as changes:
            while not stop.is_set():
                lease: Any = self.queue.claim(name, offered)
                if lease is None:
                    changes.wait(_POLL_SECONDS)
                    continue
                stop.wait(self._seconds)
                self.queue.complete(lease, outcome_of(lease.job, self._seconds))


@contextlib.contextmanager
def sleeping_run(
    config: Config,
    workdir: Path,
    states: Sequence[State],
    workers: int,
    seconds: float,
    interruption: Interruption | None = None,
) -> Iterator[SleepingRun]:
    """Open a `SleepingRun`, and close it on exit.

    Args:
      config: Config with rl as its only stage and a checkpoint as the policy.
      workdir: Local folder.
      states: States of the pool.
      workers: Maximum concurrent jobs.
      seconds: Seconds per execution.
      interruption: Signals of the process.

    Raises:
      ConfigError: The config requires something else, or the workdir is another run's.
    """
    if config.stages != ("rl",):
        raise ConfigError(f"config.stages is {config.stages}; a run whose executions sleep has the stage rl alone")
    run = SleepingRun.open(config, str(workdir), interruption)
    with contextlib.closing(run):
        run.start(states, workers, seconds)
        yield run


def main(argv: Sequence[str]) -> int:
    """Train from random weights; return an exit status."""
    known = flags.FlagValues()  # separate: mlagent_jax.train has flags of the same names
    config_file = config_flags.DEFINE_config_file("config", None, "Config file.", known, sys_argv=list(argv))
    workdir = flags.DEFINE_string("workdir", None, "Output folder.", known)
    seconds = flags.DEFINE_float("seconds", None, "Seconds per execution.", lower_bound=0.0, flag_values=known)
    workers = flags.DEFINE_integer("workers", None, "Concurrent executions.", lower_bound=1, flag_values=known)
    flags.mark_flags_as_required(["config", "workdir", "seconds", "workers"], known)
    parse_flags(list(argv), known)
    log_plainly()
    try:
        with Interruption() as interruption:
            _train(config_file.value, Path(workdir.value), seconds.value, workers.value, interruption)
    except EXPECTED_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print("stopped; start again with the same command to go on", file=sys.stderr)
        return stopped.status
    return 0


def _train(config_dict: Any, workdir: Path, seconds: float, workers: int, interruption: Interruption) -> None:
    from mlagent_jax.rl.stage import rl

    states = made_up_states(4 * config_dict.rl.states)
    folder = workdir / "policy"
    if from_scratch := not config_dict.policy.checkpoint:
        config_dict.policy.checkpoint = str(folder)
    config = freeze(config_dict)
    if from_scratch and not (folder / "config.json").exists():
        workdir.mkdir(parents=True, exist_ok=True)
        make_policy(config, folder, states)
    with sleeping_run(config, workdir, states, workers, seconds, interruption) as run, run.stage("rl") as needed:
        if needed:
            rl(run)


if __name__ == "__main__":
    leave(main(sys.argv))
