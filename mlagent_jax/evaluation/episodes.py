"""Whole episodes of one agent: at most so many steps and minutes, and the best submission so far counts.

All trajectories go on side by side, a wave of jobs a depth. Their minutes are their own: seconds of their replies and
of their scripts; waiting in the queue, and for one another, is not theirs. A step that was begun in time counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from environments.protocol import Job, Outcome, OutcomeKind, State
from mlagent_jax.agent.collector import is_masked
from mlagent_jax.evaluation.agents import Agent, Reply, Turn
from mlagent_jax.run import Run

POLICY_VERSIONS = {"base": -4, "sft": -3, "rl": -2}
"""Policy versions of the evaluations' jobs, apart from those of training."""


def job_version(name: str) -> int:
    """The policy version of jobs of the agent called `name`."""
    return POLICY_VERSIONS.get(name, -100 - int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big"))


@dataclasses.dataclass
class _Episode:
    split: str
    task: str
    trajectory: int
    state: State
    best: Outcome | None = None
    last: OutcomeKind | None = None
    ended: bool = False
    seconds: float = 0.0
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    lost: bool = False
    """No reply could be had: our failure, and the episode is left out."""


def play(run: Run, name: str, agent: Agent) -> list[dict[str, Any]]:
    """Records of all episodes of the agent called `name`, on the tasks and at the lengths of `config.evaluate`."""
    config = run.config.evaluate
    plan = [("held_in", task) for task in run.task_names("train")[: config.episode_tasks_held_in]]
    plan += [("held_out", task) for task in run.task_names("held_out")[: config.episode_tasks_held_out]]
    episodes = [
        _Episode(split, task, i, run.initial_state(task)) for split, task in plan for i in range(config.trajectories)
    ]
    for depth in range(config.steps):
        run.stop_if_told()
        active = [e for e in episodes if not e.ended and e.seconds < 60 * config.minutes and agent.fits(e.state)]
        if not active:
            break
        replies = agent.reply([Turn(e.state, e.trajectory, depth, e.last) for e in active])
        taking: list[tuple[_Episode, Reply, Job]] = []
        for episode, reply in zip(active, replies, strict=True):
            if reply is None:
                episode.ended = episode.lost = True
                continue
            job = run.job(
                episode.state,
                reply.text,
                version=job_version(name),
                sample=episode.trajectory,
                reward=config.reward,
                truncated=reply.truncated,
            )
            taking.append((episode, reply, job))
        outcomes = execute(run, f"episodes {name} step {depth + 1}", [job for _, _, job in taking])
        for (episode, reply, job), outcome in zip(taking, outcomes, strict=True):
            _take(episode, agent, reply, job, outcome)
    return [_record(run, name, episode) for episode in episodes if not episode.lost]


def execute(run: Run, label: str, jobs: list[Job]) -> list[Outcome]:
    """Outcomes of `jobs`, in order."""
    with run.progress(label, len(jobs)) as progress:

        def show(outcome: Outcome) -> None:
            progress.update(1, **({} if outcome.reward is None else {"reward": outcome.reward}))

        return run.collector.gather(jobs, show)


def _take(episode: _Episode, agent: Agent, reply: Reply, job: Job, outcome: Outcome) -> None:
    took = {f.name: getattr(reply, f.name) for f in dataclasses.fields(Reply) if f.name not in ("text", "truncated")}
    episode.steps.append(
        {"prompt": agent.prompt(episode.state), "action": reply.text, "outcome": outcome.to_dict(), "took": took}
    )
    episode.seconds += reply.seconds + outcome.seconds
    if is_masked(outcome):
        episode.ended = True
        return
    episode.state, episode.ended, episode.last = outcome.next_state(job), outcome.final, outcome.kind
    if outcome.kind is OutcomeKind.SCORED and _improves(outcome, episode.best):
        episode.best = outcome


def _improves(outcome: Outcome, best: Outcome | None) -> bool:
    """Better than the best submission so far, the starting script's included; by the reward half."""
    scale = outcome.scale
    return scale.delta(scale.m_init if best is None else best.metric_after, outcome.metric_after) > 0


def _record(run: Run, name: str, episode: _Episode) -> dict[str, Any]:
    """The episode, its best submission graded once on the report half."""
    task = run.tasks[episode.task]
    metric, official = task.report_init, {"medal": "none"}
    if episode.best is not None:
        submission = run.store.get(episode.best.submission)
        metric = task.grade_report(submission)
        official = task.official(submission) if task.has_medals else {}
    return {
        "kind": "episode",
        "policy": name,
        "split": episode.split,
        "task": episode.task,
        "trajectory": episode.trajectory,
        "best_of": min(run.config.evaluate.best_of, run.config.evaluate.trajectories),
        "steps": episode.steps,
        "seconds": episode.seconds,
        "report_metric": metric,
        "report_init": task.report_init,
        "higher_is_better": task.scale.higher_is_better,
        "metric": task.spec.metric,
        **({"official": official} if task.has_medals else {}),
    }
