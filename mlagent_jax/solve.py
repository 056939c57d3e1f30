"""Search by an agent for a better script for a task of yours.

    python -m mlagent_jax.solve --checkpoint=runs/quickstart --task=docs/examples/rents --budget="30m, 200 executions"

The agent is a checkpoint (as for `mlagent_jax.sample`), a language model behind an endpoint, or the scripted expert
(`--agent=expert`). The task is a folder (docs/bring_your_own_task.md), the name of an embedded task, or a table with
`--target=COLUMN`. A strategy chooses steps over a tree of real executions (`mlagent_jax.search`). Scripts run on slots
of this host or on a fleet. `--output` holds the tree: a search that was stopped continues when the same command is
started again. docs/solve.md describes the files there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging
from rich.console import Console

from environments.actions.openai_http import EndpointError
from environments.episode import Episode, make
from environments.files.blobs import Store, StoreError, open_store
from environments.interfaces.terminal import printable
from environments.queue import open_queue
from environments.queue.base import QUEUE_VARIABLE, QueueError
from environments.registry import RegistryError
from environments.sandbox import SANDBOXES
from environments.sandbox.base import SandboxError
from environments.tasks.task import TaskError
from mlagent_jax.runtime.errors import BudgetError, ConfigError
from mlagent_jax.search.budget import Budget
from mlagent_jax.search.run import Settings
from mlagent_jax.search.session import search
from mlagent_jax.search.strategies import STRATEGIES
from mlagent_jax.settings.policy import PromptConfig

if TYPE_CHECKING:
    from mlagent_jax.agents.episodes import Agent

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Hugging Face folder, or a run's workdir, stage or step.")
ENDPOINT = flags.DEFINE_string("endpoint", None, "URL of an OpenAI-compatible endpoint: http://localhost:8000/v1.")
MODEL = flags.DEFINE_string("model", None, "Name of the endpoint's model.")
PROMPT_PRICE = flags.DEFINE_float("prompt_price", 0.0, "Price of a million prompt tokens of the endpoint.")
COMPLETION_PRICE = flags.DEFINE_float("completion_price", 0.0, "Price of a million completion tokens of the endpoint.")
AGENT = flags.DEFINE_enum("agent", None, ["expert", "nothing"], "Agent without a model, in place of a checkpoint.")
TASK = flags.DEFINE_string("task", None, "Folder of a task, name of an embedded one, or a table with --target.")
TARGET = flags.DEFINE_string("target", None, "Column to predict of the table that --task names.")
OUTPUT = flags.DEFINE_string("output", "solved", "Folder of the search and its result.")
BUDGET = flags.DEFINE_string("budget", "25 executions", 'Limits: "30m, 200 executions, 500k tokens, 5 USD".')
STRATEGY = flags.DEFINE_string("strategy", "greedy", "Strategy, with parameters: greedy:drafts=3,debug=0.3.")
ENSEMBLE = flags.DEFINE_integer("ensemble", 0, "Maximum scripts of an ensemble of the best ones.", lower_bound=0)
SLOTS = flags.DEFINE_integer("slots", 1, "Concurrent executions.", lower_bound=1)
FLEET = flags.DEFINE_boolean("fleet", False, f"Execute on the workers of the queue in ${QUEUE_VARIABLE}.")
STORE = flags.DEFINE_string("store", None, "Store that the workers of the fleet share; default: in --cache_dir.")
SANDBOX = flags.DEFINE_enum("sandbox", "auto", ["auto", *SANDBOXES.names()], "Where scripts run.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the task's data and of the search.", lower_bound=0)
TENSOR = flags.DEFINE_integer("tensor", 1, "Devices to split each layer over.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 takes the most probable token.", lower_bound=0.0)
PROFILE = flags.DEFINE_enum(
    "profile",
    None,
    ["compact", "medium", "full"],
    "Of prompts; default: the run's, of a chat model full, else compact.",
)
MAX_PROMPT_TOKENS = flags.DEFINE_integer("max_prompt_tokens", 0, "Maximum tokens per prompt; 0: the agent's default.")
CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Prepared tasks and snapshots; default: ~/.cache/mlagent-jax.")

MakeAgent = Callable[[Episode], "Agent"]


def prompt_config(checkpoint: str, profile: str | None, chat: bool) -> PromptConfig:
    """Return the settings of the policy's prompts.

    They are those of the run that the checkpoint lies in. Without such a run, a tokenizer with a chat template gets the
    full profile, any other the compact one.

    Args:
      checkpoint: Path of the checkpoint.
      profile: Profile to use instead, or None.
      chat: Whether the tokenizer has a chat template.
    """
    folder = Path(checkpoint).absolute()
    for place in (folder, *folder.parents[:3]):
        config = place / "config.json"
        found = json.loads(config.read_text()) if config.is_file() else {}
        prompt: Mapping[str, Any] | None = found.get("prompt") if isinstance(found, dict) else None
        if isinstance(prompt, dict):
            known = {field.name for field in dataclasses.fields(PromptConfig)}
            settings = PromptConfig(**{name: value for name, value in prompt.items() if name in known})
            return dataclasses.replace(settings, profile=profile or settings.profile, editor="")
    if (profile or ("full" if chat else "compact")) == "full":
        return PromptConfig(profile="full", max_prompt_tokens=8192, max_action_tokens=2048, operators=chat)
    # Scripts of users are longer than those that the defaults are made for.
    return PromptConfig(profile=profile or "compact", max_prompt_tokens=2048, max_action_tokens=256)


def _policy(checkpoint: str) -> tuple[PromptConfig, MakeAgent]:
    """Return the settings of a checkpoint's prompts, and the constructor of its agent."""
    import jax

    from mlagent_jax.agents.actor import Actor
    from mlagent_jax.agents.critic import Critic
    from mlagent_jax.agents.factory import PolicyAgent
    from mlagent_jax.agents.prompts import Renderer
    from mlagent_jax.checkpoints.policies import load_value_head
    from mlagent_jax.parallelism import make_mesh
    from mlagent_jax.sampling import Distribution, SamplerConfig, TokenSampler
    from mlagent_jax.sampling.checkpoint import load

    mesh = make_mesh({"tensor": TENSOR.value}, jax.devices()[: TENSOR.value])
    jax.set_mesh(mesh)
    model, tokenizer = load(checkpoint, mesh=mesh)
    prompt = _limited(prompt_config(checkpoint, PROFILE.value, tokenizer.has_chat_template))
    settings = SamplerConfig(
        max_new_tokens=prompt.max_action_tokens,
        distribution=Distribution(TEMPERATURE.value),
        slots=SLOTS.value,
        prefill_rows=1,
        stop_token_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
    )
    sampler, head = TokenSampler(model.graph, settings), load_value_head(checkpoint)

    def make_agent(episode: Episode) -> Agent:
        renderer = Renderer(tokenizer, prompt, {episode.task_key: episode.spec})
        critic = None if head is None else Critic(model.graph, model.params, head, renderer)
        actor = Actor(sampler, renderer, SEED.value)
        return PolicyAgent(actor, model.params, lambda trajectory, depth, place: f"solve/{trajectory.index}", critic)

    return prompt, make_agent


def _endpoint(url: str, budget: Budget, closing: contextlib.ExitStack) -> tuple[PromptConfig, MakeAgent]:
    """Return the settings of an endpoint's prompts, and the constructor of its agent.

    Args:
      url: URL of the endpoint.
      budget: Budget of the search, whose tokens and money limit the endpoint too.
      closing: Stack that closes the client.

    Raises:
      ConfigError: The flags do not name the model.
    """
    from mlagent_jax.agents.actor import seed_of
    from mlagent_jax.agents.endpoint import EndpointClient
    from mlagent_jax.agents.factory import EndpointAgent
    from mlagent_jax.agents.prompts import prompt_text
    from mlagent_jax.settings.hosts import EndpointConfig

    if not MODEL.value:
        raise ConfigError("--endpoint needs the name of its model: --model=NAME")
    profile = PROFILE.value or "full"
    prompt = _limited(PromptConfig(profile=profile, max_prompt_tokens=16384, max_action_tokens=4096, operators=True))
    config = EndpointConfig(
        url=url,
        model=MODEL.value,
        temperature=TEMPERATURE.value,
        max_tokens=prompt.max_action_tokens,
        budget_tokens=0 if budget.tokens == float("inf") else int(budget.tokens),
        budget_cost=0.0 if budget.money == float("inf") else budget.money,
        prompt_price=PROMPT_PRICE.value,
        completion_price=COMPLETION_PRICE.value,
    )
    client = closing.enter_context(EndpointClient(config, Path(OUTPUT.value)))

    def make_agent(episode: Episode) -> Agent:
        return EndpointAgent(
            client,
            lambda state: prompt_text(prompt, episode.spec, state),
            lambda trajectory, depth: seed_of(SEED.value, trajectory.index),
            must_answer=True,
        )

    return prompt, make_agent


def _without_model(name: str) -> tuple[PromptConfig, MakeAgent]:
    """Return the settings of the prompts of the agent `name`, which needs no model, and its constructor."""
    from mlagent_jax.agents.factory import NothingAgent, ScriptedAgent
    from mlagent_jax.agents.scripted import ScriptedExpert
    from mlagent_jax.settings.stages import CollectConfig

    prompt = PromptConfig(profile=PROFILE.value or "compact", operators=True)

    def make_agent(episode: Episode) -> Agent:
        if name == "nothing":
            return NothingAgent(prompt.profile)
        start = episode.state.script
        return ScriptedAgent(lambda t: ScriptedExpert(episode.spec, start, CollectConfig(), prompt.profile, t.seed))

    return prompt, make_agent


def _limited(prompt: PromptConfig) -> PromptConfig:
    return dataclasses.replace(prompt, max_prompt_tokens=MAX_PROMPT_TOKENS.value or prompt.max_prompt_tokens)


def _agent(budget: Budget, closing: contextlib.ExitStack) -> tuple[str, PromptConfig, MakeAgent]:
    """Return the agent that the flags choose: its name, the settings of its prompts, and its constructor.

    Raises:
      ConfigError: The flags choose no agent, or more than one.
    """
    named = [value for value in (CHECKPOINT.value, ENDPOINT.value, AGENT.value) if value]
    if len(named) != 1:
        raise ConfigError("name one agent: --checkpoint=DIR, --endpoint=URL --model=NAME, or --agent=expert")
    if CHECKPOINT.value:
        return f"hf:{os.path.abspath(CHECKPOINT.value)}", *_policy(CHECKPOINT.value)
    if ENDPOINT.value:
        return f"endpoint:{MODEL.value}", *_endpoint(ENDPOINT.value, budget, closing)
    return AGENT.value, *_without_model(AGENT.value)


def _fleet_store() -> Store | None:
    """Return the store that the fleet shares; None if the flags name none."""
    return open_store(STORE.value) if STORE.value else None


def main(argv: Sequence[str]) -> None:
    """Search for a better script as the flags say; exit with the status of the search."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: every setting is a flag")
    logging.set_verbosity(logging.WARNING)  # Only the steps are shown.
    console = Console()
    try:
        from environments import tasks

        place = TASK.value
        if TARGET.value:
            from mlagent_jax.search.table_task import task_of_table  # loads pandas

            place = f"{task_of_table(Path(TASK.value), TARGET.value, Path(OUTPUT.value) / 'task', SEED.value)}/"
        tasks.get(place)  # Reports an unknown task before weights are loaded.
        budget, strategy = Budget.parse(BUDGET.value), STRATEGIES.choose(STRATEGY.value)
        url = os.environ.get(QUEUE_VARIABLE, "") if FLEET.value else ""
        if FLEET.value and not url:
            raise ConfigError(f"--fleet needs the queue's URL in ${QUEUE_VARIABLE}")
        with contextlib.ExitStack() as closing:
            name, prompt, make_agent = _agent(budget, closing)
            with console.status("preparing the task"):
                episode = closing.enter_context(
                    make(
                        place,
                        sandbox=SANDBOX.value,
                        profile=prompt.profile,
                        seed=SEED.value,
                        cache_dir=CACHE_DIR.value,
                        store=_fleet_store(),
                    )
                )
            queue = url and closing.enter_context(contextlib.closing(open_queue(url, store=episode.store)))
            settings = Settings(strategy, budget, SEED.value, SLOTS.value)
            _, status = search(
                episode,
                make_agent(episode),
                Path(OUTPUT.value),
                settings,
                agent_name=name,
                console=console,
                queue=queue or None,
                ensemble_size=ENSEMBLE.value,
            )
    except (
        *(OSError, ValueError, BudgetError, EndpointError),
        *(QueueError, RegistryError, SandboxError, StoreError, TaskError),
    ) as error:
        sys.exit(f"error: {printable(str(error))}")
    console.print(
        f"Everything is in {OUTPUT.value}/; the story is {OUTPUT.value}/page.html.", markup=False, soft_wrap=True
    )
    sys.exit(status)


if __name__ == "__main__":
    flags.mark_flags_as_required(["task"])
    app.run(main)
