"""Agents for the names in `config.evaluate.policies`.

A reply depends only on the seed, the state and the trajectory (an endpoint's is stored), so that an interrupted
evaluation takes the same actions again and finds their results in the queue.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mlagent_jax.agents.endpoint import EndpointClient
from mlagent_jax.agents.episodes import Agent, Trajectory
from mlagent_jax.agents.factory import EndpointAgent, NothingAgent, PolicyAgent, ScriptedAgent
from mlagent_jax.agents.scripted import ScriptedExpert
from mlagent_jax.runs.policies import checkpoint_policy, make_actor, trained_policy
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime import processes
from mlagent_jax.settings.agent_names import AgentSpec


@contextlib.contextmanager
def open_agent(run: Run, spec: AgentSpec) -> Iterator[Agent]:
    """Yield the agent that `spec` names.

    Raises:
      ConfigError: A checkpoint cannot be read, or no endpoint is configured.
    """
    config = run.config
    if spec.kind == "expert":

        def expert(t: Trajectory) -> ScriptedExpert:
            spec = run.tasks[t.state.task_name].spec
            return ScriptedExpert(spec, t.state.script, config.collect, config.prompt.profile, t.seed)

        yield ScriptedAgent(expert)
    elif spec.kind == "nothing":
        yield NothingAgent(config.prompt.profile)
    elif spec.kind == "endpoint":
        folder = Path(run.workdir) / "endpoint"
        with contextlib.ExitStack() as resources:
            clients: list[EndpointClient] = []
            processes.agree(lambda: clients.append(resources.enter_context(EndpointClient(config.endpoint, folder))))
            client = clients[0] if clients else None
            yield EndpointAgent(client, run.prompt, lambda t, depth: (config.seed * 1009 + t.index) * 1009 + depth)
    else:
        policy = checkpoint_policy(run, spec.place) if spec.kind == "hf" else trained_policy(run, spec.kind, spec.step)
        actor = make_actor(run, policy)
        yield PolicyAgent(actor, policy.params, lambda t, depth, place: f"episode/{depth}/{t.index}")
