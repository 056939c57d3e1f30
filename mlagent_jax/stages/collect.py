"""collect: the scripted expert works on the tasks by real steps; every step is stored with its snapshot and outcome.

All trajectories go on side by side, a wave of jobs a depth. The expert's steps follow from the seed and the outcomes
alone: after an interruption the same jobs are handed out again, and those that were executed answer from the queue.
"""

from __future__ import annotations

import dataclasses

from environments.protocol import Outcome, OutcomeKind, State
from mlagent_jax.agent.collector import is_masked
from mlagent_jax.agent.expert import Move, ScriptedExpert
from mlagent_jax.agent.prompts import prompt_text
from mlagent_jax.data import jsonl
from mlagent_jax.data.trajectories import Record
from mlagent_jax.run import Run

EXPERT_VERSION = -1
"""Policy version of the expert's jobs: before every policy of ours."""


@dataclasses.dataclass
class _Trajectory:
    """One trajectory under way."""

    split: str
    index: int
    expert: ScriptedExpert
    state: State
    move: Move | None = None
    kind: OutcomeKind | None = None
    ended: bool = False


def collect(run: Run) -> None:
    """Write trajectories/collect.jsonl: expert steps to train on, and the states of the fixed evaluation."""
    config, reward = run.config.collect, run.config.evaluate.reward
    trajectories = list(_trajectories(run))
    records: list[Record] = []
    with run.progress("collect", len(trajectories) * config.steps) as progress:

        def show(outcome: Outcome) -> None:
            values = {} if outcome.reward is None else {"reward": outcome.reward}
            progress.update(1, scored=float(outcome.kind is OutcomeKind.SCORED), **values)

        for depth in range(config.steps):
            active = [t for t in trajectories if not t.ended]
            for t in active:
                t.move = t.expert.propose(t.state, t.move, t.kind)
            jobs = [
                run.job(t.state, t.move.action, version=EXPERT_VERSION, sample=t.index, reward=reward) for t in active
            ]
            for t, job, outcome in zip(active, jobs, run.collector.gather(jobs, show), strict=True):
                t.kind = outcome.kind
                # A step that our side could not execute says nothing of the script: the trajectory ends before it.
                t.ended = outcome.final or is_masked(outcome)
                if is_masked(outcome):
                    continue
                records.append(
                    Record.of(
                        job,
                        outcome,
                        stage="collect",
                        split=t.split,
                        trajectory=t.index,
                        step=depth,
                        prompt=prompt_text(run.config.prompt, run.specs[t.state.task], t.state),
                        target=not t.move.slip,
                    )
                )
                t.state = outcome.next_state(job)
    folder = run.workdir / "trajectories"
    folder.mkdir(parents=True, exist_ok=True)
    jsonl.replace(folder / "collect.jsonl", [record.to_dict() for record in records])


def _trajectories(run: Run) -> list[_Trajectory]:
    """For training, `collect.trajectories` a training task; for the fixed evaluation, as many as its states take."""
    config = run.config
    plan = [("train", name, i) for name in run.task_names("train") for i in range(config.collect.trajectories)]
    for split, names, states in (
        ("held_in", run.task_names("train"), config.evaluate.states_held_in),
        ("held_out", run.task_names("held_out"), config.evaluate.states_held_out),
    ):
        # Embedded tasks come first, so that a small evaluation is one of real data.
        count = -(-states // config.collect.steps) if names else 0
        plan += [(split, names[i % len(names)], config.collect.trajectories + i // len(names)) for i in range(count)]
    found = []
    for split, name, index in plan:
        state = run.initial_state(name)
        expert = ScriptedExpert(
            run.tasks[name].spec,
            state.script,
            config.collect,
            config.prompt.profile,
            seed=f"{config.seed}/{split}/{name}/{index}",
        )
        found.append(_Trajectory(split, index, expert, dataclasses.replace(state, ideas=expert.ideas)))
    return found
