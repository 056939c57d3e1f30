"""evaluate: fixed states (several actions each) and episodes, on tasks trained on and tasks never seen.

Writes evaluation/<policy>.jsonl for every policy that exists and is not evaluated yet. Actions depend on the seed and
the state alone, so an interrupted evaluation finds its executed results in the queue.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from environments.protocol import Job, Outcome, OutcomeKind, State
from mlagent_jax.agent.actor import Actor, SampledAction
from mlagent_jax.agent.collector import is_masked
from mlagent_jax.data import jsonl
from mlagent_jax.policy import Policy, make_actor, trained_policy
from mlagent_jax.run import Run

POLICY_VERSIONS = {"base": -4, "sft": -3, "rl": -2}
"""Policy versions of the evaluations' jobs, apart from those of training."""


def evaluate(run: Run) -> None:
    """Evaluate the policies that the config names, as far as their stages are done."""
    folder = run.workdir / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    for name in run.config.evaluate.policies:
        path = folder / f"{name}.jsonl"
        if path.exists() or not _exists(run, name):
            continue
        policy = trained_policy(run, name)
        actor = make_actor(run, policy)
        records = _steps(run, name, policy, actor) + _episodes(run, name, policy, actor)
        jsonl.replace(path, records)


def _exists(run: Run, name: str) -> bool:
    return name == "base" or run.is_done(name) or (name == "sft" and "sft" not in run.config.stages)


def _steps(run: Run, name: str, policy: Policy, actor: Actor) -> list[dict[str, Any]]:
    """One action, several times, from each fixed state."""
    config = run.config.evaluate
    limits = {"held_in": config.states_held_in, "held_out": config.states_held_out}
    fixed: dict[str, list[State]] = {"held_in": [], "held_out": []}
    for record in run.expert_records():
        state = dataclasses.replace(record.state, ideas=())
        states = fixed.get(record.split)
        # Trajectories of one task share their first state; it counts once.
        if states is not None and state not in states and actor.renderer.fits(state):
            states.append(state)
    records = []
    for split, states in fixed.items():
        states = _spread(states, limits[split])
        if not states:
            continue
        run.check_snapshots(states)
        actions = actor.act(policy.params, states, config.samples, "evaluate")
        for action, _, outcome in _execute(run, f"evaluate {name} {split}", name, actions):
            records.append(
                {
                    "kind": "step",
                    "policy": name,
                    "split": split,
                    "task": action.state.task_name,
                    "state": action.state.id,
                    "sample": action.sample,
                }
                | _taken(actor, action, outcome)
            )
    return records


def _spread(states: list[State], count: int) -> list[State]:
    """`count` of `states`, evenly over their order, so that every task and depth is among them."""
    if len(states) <= count:
        return states
    return [states[math.floor(i * len(states) / count)] for i in range(count)]


@dataclasses.dataclass
class _Episode:
    split: str
    task: str
    trajectory: int
    state: State
    best: Outcome | None = None
    ended: bool = False
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def _episodes(run: Run, name: str, policy: Policy, actor: Actor) -> list[dict[str, Any]]:
    """Whole episodes; the best submission so far counts, and is graded once on the report half."""
    config = run.config.evaluate
    plan = [("held_in", task) for task in run.task_names("train")[: config.episode_tasks_held_in]]
    plan += [("held_out", task) for task in run.task_names("held_out")[: config.episode_tasks_held_out]]
    episodes = [
        _Episode(split, task, i, run.initial_state(task)) for split, task in plan for i in range(config.trajectories)
    ]
    for depth in range(config.steps):
        active = [e for e in episodes if not e.ended and actor.renderer.fits(e.state)]
        if not active:
            break
        actions = []
        for trajectory in range(config.trajectories):
            # Trajectories of one task start in the same state: the purpose tells their draws apart.
            states = [e.state for e in active if e.trajectory == trajectory]
            drawn = actor.act(policy.params, states, 1, f"episode/{depth}/{trajectory}") if states else []
            actions += [dataclasses.replace(action, sample=trajectory) for action in drawn]
        active.sort(key=lambda e: e.trajectory)
        taken = _execute(run, f"episodes {name} step {depth + 1}", name, actions)
        for episode, (action, job, outcome) in zip(active, taken, strict=True):
            episode.steps.append(_taken(actor, action, outcome))
            if is_masked(outcome):
                episode.ended = True
                continue
            episode.state, episode.ended = outcome.next_state(job), outcome.final
            if outcome.kind is OutcomeKind.SCORED and _improves(outcome, episode.best):
                episode.best = outcome
    return [_episode_record(run, name, episode) for episode in episodes]


def _improves(outcome: Outcome, best: Outcome | None) -> bool:
    """Better than the best submission so far, the starting script's included; by the reward half."""
    scale = outcome.scale
    return scale.delta(scale.m_init if best is None else best.metric_after, outcome.metric_after) > 0


def _episode_record(run: Run, name: str, episode: _Episode) -> dict[str, Any]:
    task = run.tasks[episode.task]
    metric = task.report_init
    if episode.best is not None:
        metric = task.grade_report(run.store.get(episode.best.submission))
    return {
        "kind": "episode",
        "policy": name,
        "split": episode.split,
        "task": episode.task,
        "trajectory": episode.trajectory,
        "best_of": min(run.config.evaluate.best_of, run.config.evaluate.trajectories),
        "steps": episode.steps,
        "report_metric": metric,
        "report_init": task.report_init,
        "higher_is_better": task.scale.higher_is_better,
    }


def _execute(run: Run, label: str, name: str, actions: list[SampledAction]) -> list[tuple[SampledAction, Job, Outcome]]:
    """Actions with their jobs and outcomes, in order."""
    jobs = [
        run.job(
            action.state,
            action.text,
            version=POLICY_VERSIONS[name],
            sample=action.sample,
            reward=run.config.evaluate.reward,
            truncated=action.truncated,
        )
        for action in actions
    ]
    with run.progress(label, len(jobs)) as progress:

        def show(outcome: Outcome) -> None:
            progress.update(1, **({} if outcome.reward is None else {"reward": outcome.reward}))

        outcomes = run.collector.gather(jobs, show)
    return list(zip(actions, jobs, outcomes, strict=True))


def _taken(actor: Actor, action: SampledAction, outcome: Outcome) -> dict[str, Any]:
    return {"prompt": actor.renderer.text(action.state), "action": action.text, "outcome": outcome.to_dict()}
