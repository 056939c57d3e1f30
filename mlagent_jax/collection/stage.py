"""collect: an expert works on the tasks by real steps; every step is stored with its snapshot and outcome.

All trajectories advance together, one wave of jobs per depth. The expert's steps follow from the seed, the outcomes and
stored answers. After an interruption the same jobs are submitted again, and the queue returns the results of those
already executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from environments.protocol import Outcome, OutcomeKind
from environments.tasks.generated.ideas import Idea, ideas_for
from mlagent_jax.agents.actor import seed_of
from mlagent_jax.agents.endpoint import EndpointClient
from mlagent_jax.agents.episodes import Agent, Step, Trajectory, play
from mlagent_jax.agents.factory import EndpointAgent, PolicyAgent, ScriptedAgent
from mlagent_jax.agents.job_client import is_masked
from mlagent_jax.agents.scripted import ExpertAction, ScriptedExpert
from mlagent_jax.collection.ideas import endpoint_ideas, library_ideas
from mlagent_jax.runs.inputs import collection_asks_endpoint
from mlagent_jax.runs.policies import base_policy, make_actor
from mlagent_jax.runs.run import Run
from mlagent_jax.trajectories.card import write_card
from mlagent_jax.trajectories.record import Record
from mlagent_jax.trajectories.store import Writer

COMBINE_SHARE = 0.2
"""Share of improvements that become combinations, if prompts name the kind of step."""
RUNNING = ("improve", "combine")
EXPERT_VERSION = -1
"""Policy version of the expert's jobs: below every policy's version."""


def collect(run: Run) -> None:
    """Write trajectories/collect: expert steps to train on, and the states of the fixed evaluation."""
    config, reward = run.config.collect, run.config.evaluate.reward
    trajectories = _trajectories(run)
    with contextlib.ExitStack() as opened:
        store = opened.enter_context(Writer(run.workdir / "trajectories" / "collect")) if run.is_first else None
        client = _client(run, opened)
        expert = _expert(run, trajectories, client)
        progress = opened.enter_context(run.progress("collect", len(trajectories) * config.steps, smoothing=1.0))

        def show(outcome: Outcome) -> None:
            values = {} if outcome.reward is None else {"reward": outcome.reward}
            progress.update(1, scored=float(outcome.kind is OutcomeKind.SCORED), **values)

        for wave in play(
            trajectories,
            expert,
            lambda t, action: run.job(t.state, action, version=EXPERT_VERSION, sample=t.index, reward=reward),
            lambda jobs: run.job_client.gather(jobs, show),
            config.steps,
        ):
            if store is not None:  # skips steps stored before an interruption
                store.append(_record(run, t, step) for t, step in wave if not is_masked(step.outcome))
            combine(trajectories, COMBINE_SHARE)
            for t, _ in wave:
                del t.steps[:-1]  # stored steps need no memory: an expert reads only its last step
            run.stop_if_requested()
        if store is not None:
            store.seal()
            write_card(store.store)


def combine(trajectories: Sequence[Trajectory], share: float) -> None:
    """Let the next step of some trajectories be a combination with the script of another one on the same task.

    Args:
      trajectories: All that are played together.
      share: Probability for each whose next step would be an improvement.
    """
    for t in trajectories:
        rng = random.Random(f"{t.seed}/combine/{len(t.state.history)}")  # noqa: S311 - reproducible, not secret
        if t.ended or t.state.operator != "improve" or rng.random() >= share:
            continue
        # Scripts that ran last, and so could be scored.
        others = {
            other.state.script
            for other in trajectories
            if (other.state.task, other.split) == (t.state.task, t.split) and other.state.operator in RUNNING
        }
        if others := sorted(others - {t.state.script}):
            t.state = dataclasses.replace(t.state, operator="combine", other=rng.choice(others))


def _record(run: Run, trajectory: Trajectory, step: Step) -> Record:
    return Record.of(
        step.job,
        step.outcome,
        stage="collect",
        split=trajectory.split,
        trajectory=trajectory.index,
        step=len(step.job.state.history),
        prompt=run.prompt(step.job.state),
        target=not (isinstance(step.action, ExpertAction) and step.action.broken),
    )


def _client(run: Run, opened: contextlib.ExitStack) -> EndpointClient | None:
    """Return the language model's client if the expert or its ideas need one."""
    config = run.config
    if not collection_asks_endpoint(config):
        return None
    return opened.enter_context(EndpointClient(config.endpoint, Path(run.workdir) / "endpoint"))


def _trajectories(run: Run) -> list[Trajectory]:
    """Plan trajectories: `collect.trajectories` per training task, and as many for the fixed evaluation as its states
    need."""
    config = run.config
    plan = [("train", name, i) for name in run.task_names("train") for i in range(config.collect.trajectories)]
    for split, names, states in (
        ("held_in", run.task_names("train"), config.evaluate.states_held_in),
        ("held_out", run.task_names("held_out"), config.evaluate.states_held_out),
    ):
        # Embedded tasks come first, so that a small evaluation is one of real data.
        count = -(-states // config.collect.steps) if names else 0
        plan += [(split, names[i % len(names)], config.collect.trajectories + i // len(names)) for i in range(count)]
    return [
        Trajectory(split, index, run.initial_state(name), seed=f"{config.seed}/{split}/{name}/{index}")
        for split, name, index in plan
    ]


def _expert(run: Run, trajectories: list[Trajectory], client: EndpointClient | None) -> Agent:
    """Return the configured expert; give each trajectory's state the ideas that enrich its prompts."""
    config = run.config
    names = dict.fromkeys(t.state.task_name for t in trajectories)
    if config.collect.expert == "scripted":
        libraries = {name: _library(run, name, client) for name in names}

        def make(t: Trajectory) -> ScriptedExpert:
            name = t.state.task_name
            spec, profile = run.tasks[name].spec, config.prompt.profile
            habit = None if _is_enriched(run, t) else f"{config.seed}/habit"
            return ScriptedExpert(spec, t.state.script, config.collect, profile, t.seed, libraries[name], habit)

        experts = {t.seed: make(t) for t in trajectories}
        for t in trajectories:
            t.state = dataclasses.replace(t.state, ideas=experts[t.seed].ideas)
        return ScriptedAgent(lambda t: experts[t.seed])
    enriched = [t for t in trajectories if _is_enriched(run, t)]
    ideas = {name: _texts(run, name, client) for name in dict.fromkeys(t.state.task_name for t in enriched)}
    for t in enriched:
        known = ideas[t.state.task_name]
        rng = random.Random(f"{t.seed}/ideas")  # noqa: S311 - reproducible, not secret
        count = min(rng.randint(config.collect.min_ideas, config.collect.max_ideas), len(known))
        t.state = dataclasses.replace(t.state, ideas=tuple(rng.sample(known, count)))
    if config.collect.expert == "endpoint":
        return EndpointAgent(client, run.prompt, lambda t, depth: seed_of(t.seed, depth), must_answer=True)
    policy = base_policy(run)
    actor = make_actor(run, policy)
    return PolicyAgent(actor, policy.params, lambda t, depth, place: f"collect/{depth}/{place}")


def _is_enriched(run: Run, trajectory: Trajectory) -> bool:
    """Return whether a trajectory's prompts have ideas. States of the fixed evaluation always do, whatever is trained
    on."""
    return run.config.collect.enriched or trajectory.split != "train"


def _library(run: Run, name: str, client: EndpointClient | None) -> tuple[Idea, ...]:
    """Return ideas of the built-in library for a task: all, or the most diverse."""
    spec, script = run.tasks[name].spec, run.initial_state(name).script
    if not run.config.ideas.keep:
        return ideas_for(spec, script)
    return library_ideas(spec, script, run.config.ideas, f"{run.config.seed}/{name}", client)


def _texts(run: Run, name: str, client: EndpointClient | None) -> list[str]:
    """Return ideas for a task as text."""
    if run.config.ideas.source == "library":
        return [idea.text for idea in _library(run, name, client)]
    path = run.workdir / "ideas" / f"{name}.json"
    return endpoint_ideas(run.tasks[name].spec, run.config.ideas, f"{run.config.seed}/{name}", client, path)
