"""Whole episodes of one agent, limited in steps and minutes; the best submission counts."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

from environments.protocol import Job, Outcome
from mlagent_jax.agents.episodes import Agent, Trajectory, best_submission, play
from mlagent_jax.evaluation.unplayed import Unplayed
from mlagent_jax.runs.run import Run

POLICY_VERSIONS = {"base": -4, "sft": -3, "rl": -2}
"""Policy versions of evaluation jobs, distinct from those of training."""


def job_version(name: str) -> int:
    """Return the policy version of jobs of the agent called `name`."""
    return POLICY_VERSIONS.get(name, -100 - int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big"))


def play_episodes(run: Run, name: str, agent: Agent) -> tuple[list[dict[str, Any]], list[Unplayed]]:
    """Play the episodes of the agent called `name`, on the tasks and with the limits of `config.evaluate`; return their
    records, and what was not played."""
    config = run.config.evaluate
    plan = [("held_in", task) for task in run.task_names("train")[: config.episode_tasks_held_in]]
    plan += [("held_out", task) for task in run.task_names("held_out")[: config.episode_tasks_held_out]]
    episodes = [
        Trajectory(split, i, run.initial_state(task), seed=f"{run.config.seed}/evaluate/{task}/{i}")
        for split, task in plan
        for i in range(config.trajectories)
    ]
    version, waves = job_version(name), itertools.count(1)
    for _ in play(
        episodes,
        agent,
        lambda t, action: run.job(t.state, action, version=version, sample=t.index, reward=config.reward),
        lambda jobs: execute(run, f"episodes {name} step {next(waves)}", jobs),
        config.steps,
        config.minutes,
    ):
        run.stop_if_requested()
    unplayed = [
        Unplayed(what, episode.split, 1, reason, episode.state.task_name)
        for episode in episodes
        for what, reason in (("episodes", episode.lost), ("ends of episodes", episode.cut))
        if reason
    ]
    return [_record(run, name, episode) for episode in episodes if not episode.lost], unplayed


def execute(run: Run, label: str, jobs: Sequence[Job]) -> list[Outcome]:
    """Return the outcomes of `jobs`, in order."""
    with run.progress(label, len(jobs), smoothing=1.0) as progress:

        def show(outcome: Outcome) -> None:
            progress.update(1, **({} if outcome.reward is None else {"reward": outcome.reward}))

        return run.job_client.gather(jobs, show)


def _record(run: Run, name: str, episode: Trajectory) -> dict[str, Any]:
    """Return the episode's record, its best submission graded once on the report half."""
    task = run.tasks[episode.state.task_name]
    metric, official = task.report_init, {"medal": "none"}
    best = best_submission(step.outcome for step in episode.steps)
    # The starting script is a submission too; compare on the reward half.
    if best is not None and best.scale.delta(best.scale.m_init, best.metric_after) > 0:
        submission = run.store.get(best.submission)
        metric = task.grade_report(submission)
        official = task.official(submission) if task.has_medals else {}
    return {
        "kind": "episode",
        "policy": name,
        "split": episode.split,
        "task": episode.state.task_name,
        "trajectory": episode.index,
        "best_of": min(run.config.evaluate.best_of, run.config.evaluate.trajectories),
        "steps": [
            {
                "prompt": run.prompt(step.job.state),
                "action": step.action.text,
                "outcome": step.outcome.to_dict(),
                "took": {
                    "prompt_tokens": step.action.prompt_tokens,
                    "completion_tokens": step.action.completion_tokens,
                    "seconds": step.seconds,
                    "cost": step.action.cost,
                },
            }
            for step in episode.steps
        ],
        "seconds": episode.seconds,
        "report_metric": metric,
        "report_init": task.report_init,
        "higher_is_better": task.scale.higher_is_better,
        "metric": task.spec.metric,
        **({"official": official} if task.has_medals else {}),
    }
