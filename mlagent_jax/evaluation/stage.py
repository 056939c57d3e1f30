"""evaluate: fixed states (several actions each) and whole episodes, on training tasks and held-out tasks.

Writes evaluation/<name>.jsonl for every agent of `evaluate.policies` that exists and has no results yet, and what could
not be asked or played to <name>.unplayed.json. Actions depend only on the seed and the state, so an interrupted
evaluation finds its executed results in the queue.
"""

from __future__ import annotations

import logging
from typing import Any

from environments.protocol import State
from mlagent_jax.agents.factory import PolicyAgent
from mlagent_jax.evaluation.agents import open_agent
from mlagent_jax.evaluation.episodes import execute, job_version, play_episodes
from mlagent_jax.evaluation.unplayed import Unplayed, told, write_unplayed
from mlagent_jax.runs.fixed_states import fixed_states
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime import jsonl, processes
from mlagent_jax.settings.agent_names import OF_THE_RUN, AgentSpec, parse_agent

log = logging.getLogger(__name__)


def evaluate(run: Run) -> None:
    """Evaluate the configured agents whose stages are done."""
    folder = run.workdir / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    for spec in map(parse_agent, run.config.evaluate.policies):
        run.stop_if_requested()
        path = folder / f"{spec.name}.jsonl"
        if processes.agree(path.exists) or not _exists(run, spec):
            continue
        with open_agent(run, spec) as agent:
            records, unplayed = _steps(run, spec.name, agent) if isinstance(agent, PolicyAgent) else ([], [])
            episodes, unplayed_episodes = play_episodes(run, spec.name, agent)
        if run.is_first:
            unplayed += unplayed_episodes
            write_unplayed(path, unplayed)
            jsonl.replace(path, records + episodes)
            for line in told(unplayed):
                log.warning("evaluate: %s: %s", spec.name, line)


def _exists(run: Run, spec: AgentSpec) -> bool:
    name = spec.kind
    given = name == "base" or name not in OF_THE_RUN
    return given or run.is_done(name) or (name == "sft" and "sft" not in run.config.stages)


def _steps(run: Run, name: str, agent: PolicyAgent) -> tuple[list[dict[str, Any]], list[Unplayed]]:
    """Return records of several actions from each fixed state, and the states that could not be asked."""
    config = run.config.evaluate
    limits = {"held_in": config.states_held_in, "held_out": config.states_held_out}
    records, unplayed = [], []
    for split, limit in limits.items():
        misfits: list[str] = []

        def fits(state: State, misfits: list[str] = misfits) -> bool:
            misfits += [reason] if (reason := agent.misfit(state)) else []
            return not reason

        states = fixed_states(run, split, limit, fits)
        if missing := min(limit - len(states), len(misfits)):
            unplayed.append(Unplayed("states", split, missing, misfits[-1]))
        if not states:
            continue
        actions = agent.actor.act(agent.params, states, config.samples, "evaluate")
        jobs = [
            run.job(action.state, action, version=job_version(name), sample=action.sample, reward=config.reward)
            for action in actions
        ]
        for action, outcome in zip(actions, execute(run, f"evaluate {name} {split}", jobs), strict=True):
            records.append(
                {
                    "kind": "step",
                    "policy": name,
                    "split": split,
                    "task": action.state.task_name,
                    "state": action.state.id,
                    "sample": action.sample,
                    "prompt": run.prompt(action.state),
                    "action": action.text,
                    "outcome": outcome.to_dict(),
                }
            )
    return records, unplayed
