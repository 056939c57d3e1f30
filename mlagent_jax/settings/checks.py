"""Checks of the settings' values before any work; each error has a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from environments.actions import PROFILES
from environments.protocol import OutcomeKind
from environments.registry import RegistryError, use_plugins
from environments.rewards import REWARDS
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.agent_names import parse_agent
from mlagent_jax.settings.algorithm_checks import check_algorithms
from mlagent_jax.settings.numbers import check_numbers
from mlagent_jax.settings.policy import MATMUL_PRECISIONS

if TYPE_CHECKING:
    from mlagent_jax.settings.hosts import EndpointConfig
    from mlagent_jax.settings.schema import Config

STAGES = ("collect", "sft", "evaluate", "rl", "export")
TYPICAL_WEIGHT = 0.02
"""Standard deviation of the initial weights of the supported models, and about that of their trained ones."""
SMALLEST_BFLOAT16_STEP = TYPICAL_WEIGHT * 2**-9
"""Half the distance between neighbouring bfloat16 numbers at such a weight. An update of AdamW is about as large as the
learning rate."""
LINEAR_MAPS = ("query", "key", "value", "output", "gate", "up", "down", "head")


def check(config: Config) -> None:
    """Check every value that could fail later in a run.

    Raises:
      ConfigError: A value is impossible; the message names the field, its value and the remedy.
    """

    def choose(path: str, value: str, choices: tuple[str, ...]) -> None:
        if value not in choices:
            raise ConfigError(f"config.{path} is {value!r}; choose one of {', '.join(choices)}")

    check_numbers(config)
    for field in ("iterations", "steps"):
        config.profile.numbers(field)
    for stage in config.stages:
        choose("stages", stage, STAGES)
    choose("policy.compute_dtype", config.policy.compute_dtype, ("float32", "bfloat16"))
    choose("policy.param_dtype", config.policy.param_dtype, ("float32", "bfloat16"))
    choose("policy.remat", config.policy.remat, ("none", "dots", "full"))
    choose("policy.attention", config.policy.attention, ("auto", "xla", "cudnn", "splash"))
    choose("policy.matmul_precision", config.policy.matmul_precision, MATMUL_PRECISIONS)
    _check_shape(config)
    choose("prompt.profile", config.prompt.profile, tuple(PROFILES))
    if config.prompt.editor and config.prompt.profile != "full":
        raise ConfigError(
            f"config.prompt.editor is {config.prompt.editor!r}; other prompts do not list its actions, so set "
            "config.prompt.profile to full, or the editor to none"
        )
    _check_endpoint(config.endpoint)
    _check_expert(config)
    choose("workers.sandbox", config.workers.sandbox, ("auto", "docker", "bubblewrap"))
    choose("sft.schedule", config.sft.schedule, ("cosine", "constant"))
    choose("sft.optimizer", config.sft.optimizer, ("adamw", "muon"))
    choose("optimizer.moments", config.optimizer.moments, ("float32", "bfloat16", "factored"))
    choose("optimizer.placement", config.optimizer.placement, ("device", "host"))
    choose("optimizer.rounding", config.optimizer.rounding, ("nearest", "stochastic"))
    _check_training(config)
    _check_registered(config)
    choose("rl.rollout", config.rl.rollout, ("step", "episode"))
    choose("rl.critic", config.rl.critic, ("head", "separate"))
    choose("rl.kl_in", config.rl.kl_in, ("loss", "reward"))
    choose("rl.kl_estimator", config.rl.kl_estimator, ("k1", "k2", "k3", "unbiased"))
    choose("rl.aggregation", config.rl.aggregation, ("token", "sequence", "constant"))
    choose("rl.normalisation", config.rl.normalisation, ("auto", "none", "group", "batch"))
    choose("rl.silent_groups", config.rl.silent_groups, ("keep", "drop", "resample"))
    choose("validation.split", config.validation.split, ("held_in", "held_out"))
    choose("validation.metric", config.validation.metric, ("reward", "valid"))
    choose("pool.sampling", config.pool.sampling, ("uniform", "learnability"))
    agents = [parse_agent(policy) for policy in config.evaluate.policies]
    if twice := sorted({agent.name for agent in agents if [a.name for a in agents].count(agent.name) > 1}):
        raise ConfigError(f"config.evaluate.policies has two agents called {twice[0]!r}: write NAME=hf:FOLDER")
    if any(agent.kind == "endpoint" for agent in agents) and not config.endpoint.url:
        raise ConfigError(
            "config.evaluate.policies names an endpoint and config.endpoint.url is empty: set it, and "
            "config.endpoint.model"
        )
    for tracker in config.tracking.trackers:
        choose("tracking.trackers", tracker, ("mlflow", "wandb"))
    if config.tracking.trackers and not config.tracking.project:
        raise ConfigError("config.tracking.project is empty; trackers file a run under one, for example 'mlagent-jax'")
    choose("export.dtype", config.export.dtype, ("float32", "bfloat16", "float16"))
    choose("export.layout", config.export.layout, ("merged", "peft"))
    choose("export.policy", config.export.policy, ("sft", "rl"))
    _check_sampling(config)
    _check_sft(config)
    if config.collect.max_ideas < config.collect.min_ideas:
        raise ConfigError(
            f"config.collect.max_ideas is {config.collect.max_ideas}; it must be at least min_ideas, "
            f"{config.collect.min_ideas}"
        )
    if (config.rl.states * config.rl.samples) % config.rl.minibatches:
        raise ConfigError(
            f"config.rl.minibatches is {config.rl.minibatches}; it must divide states * samples = "
            f"{config.rl.states * config.rl.samples}"
        )
    for path, rows, micro in (
        ("sft", config.sft.batch_size, config.sft.micro_batch),
        ("rl", config.rl.states * config.rl.samples // config.rl.minibatches, config.rl.micro_batch),
    ):
        if micro and rows % micro:
            raise ConfigError(
                f"config.{path}.micro_batch is {micro}; it must divide the {rows} rows of a step, or be 0"
            )
    check_algorithms(config)
    _check_batches(config)
    longest = config.prompt.max_prompt_tokens + config.prompt.max_action_tokens
    if config.sft.row_tokens < longest:
        raise ConfigError(
            f"config.sft.row_tokens is {config.sft.row_tokens}; a prompt and its action may take {longest}: raise it"
        )


def _check_shape(config: Config) -> None:
    """Check the dimensions of a policy from scratch."""
    policy = config.policy
    if policy.checkpoint:
        return
    if policy.hidden_size % (2 * policy.num_heads):
        raise ConfigError(
            f"config.policy.hidden_size is {policy.hidden_size}; rotary embeddings take heads of an even width, so it "
            f"is a multiple of twice config.policy.num_heads, {2 * policy.num_heads}"
        )
    if policy.num_heads % policy.num_kv_heads:
        raise ConfigError(
            f"config.policy.num_kv_heads is {policy.num_kv_heads}; it must divide config.policy.num_heads, "
            f"{policy.num_heads}"
        )


def _check_batches(config: Config) -> None:
    """Check the source and the staleness of rl's batches."""
    rl, validation = config.rl, config.validation
    if rl.rollout == "episode" and rl.max_staleness:
        raise ConfigError(
            f"config.rl.max_staleness is {rl.max_staleness}; whole episodes (config.rl.rollout) take 0: each "
            "step needs the outcome of the one before"
        )
    if rl.straggler_seconds and rl.max_staleness < 2:
        raise ConfigError(
            f"config.rl.straggler_seconds is {rl.straggler_seconds} and config.rl.max_staleness "
            f"{rl.max_staleness}: a batch that is ahead takes one version, and its stragglers another; raise "
            "that to 2, or set this to 0"
        )
    if rl.silent_groups == "resample" and (rl.rollout == "episode" or rl.max_staleness):
        raise ConfigError(
            f"config.rl.silent_groups is 'resample', rollout {rl.rollout!r} and max_staleness {rl.max_staleness}: "
            "other states are sampled once a batch is there, which takes config.rl.rollout='step' and max_staleness=0"
        )
    if rl.silent_groups != "keep" and rl.samples < 2:
        raise ConfigError(
            f"config.rl.silent_groups is {rl.silent_groups!r} and config.rl.samples {rl.samples}: a group of one says "
            "nothing; set silent_groups to 'keep', or raise samples"
        )
    if (validation.keep_best or validation.patience) and not validation.every:
        raise ConfigError(
            "config.validation.every is 0, and keep_best or patience needs validations: set it, for example to 5"
        )
    if rl.replay and (validation.every or rl.save_batches):
        raise ConfigError(
            f"config.rl.replay is {rl.replay!r}, where nothing is sampled or executed: set config.validation.every to "
            "0 and config.rl.save_batches to False"
        )


def _check_sft(config: Config) -> None:
    """Check the data and the stopping of sft."""
    sft, chosen = config.sft, config.filter
    if sft.patience and not sft.held_out_fraction:
        raise ConfigError(
            f"config.sft.patience is {sft.patience} and config.sft.held_out_fraction 0: nothing would be evaluated; "
            "hold out a share of the trajectories, for example 0.05"
        )
    kinds = tuple(kind for kind in OutcomeKind if kind is not OutcomeKind.INFRASTRUCTURE_ERROR)
    if not chosen.outcomes or (unknown := sorted(set(chosen.outcomes) - set(kinds))):
        named = f"names {unknown[0]!r}" if chosen.outcomes else "is empty"
        raise ConfigError(f"config.filter.outcomes {named}; choose among {', '.join(kinds)}")


def _check_registered(config: Config) -> None:
    """Import the plugins and look up every function that the settings choose by name."""
    try:
        use_plugins(config.plugins)
    except RegistryError as error:
        raise ConfigError(f"config.plugins: {error}") from error
    for path, choice in (("rl.reward", config.rl.reward), ("evaluate.reward", config.evaluate.reward)):
        try:
            REWARDS.choose(choice)
        except RegistryError as error:
            raise ConfigError(f"config.{path}: {error}") from error


def _check_sampling(config: Config) -> None:
    """Check the distribution of actions."""
    sampling = config.sampling
    if "rl" in config.stages and not sampling.temperature:
        raise ConfigError(
            "config.sampling.temperature is 0 and the stages list rl, which learns from different actions of one "
            "state: set it above 0; 0 is for an evaluation without rl"
        )
    if "rl" in config.stages and (sampling.top_k or sampling.top_p != 1.0):
        raise ConfigError(
            f"config.sampling.top_k is {sampling.top_k} and top_p {sampling.top_p}; rl takes 0 and 1: "
            "log-probs of a cut distribution are not the policy's. Set them where the stages do not list rl"
        )


def _check_endpoint(endpoint: EndpointConfig) -> None:
    if bool(endpoint.url) != bool(endpoint.model):
        missing = "model" if endpoint.url else "url"
        raise ConfigError(f"config.endpoint.{missing} is empty; an endpoint takes both config.endpoint.url and .model")
    if endpoint.limit_field not in ("max_tokens", "max_completion_tokens"):
        raise ConfigError(
            f"config.endpoint.limit_field is {endpoint.limit_field!r}; choose max_tokens or max_completion_tokens"
        )
    if endpoint.budget_cost and not (endpoint.prompt_price or endpoint.completion_price):
        raise ConfigError(
            f"config.endpoint.budget_cost is {endpoint.budget_cost} and the prices are 0: set "
            "config.endpoint.prompt_price and .completion_price, a million tokens"
        )


def _check_expert(config: Config) -> None:
    """Check the expert and the source of its ideas."""
    for path, value, choices in (
        ("collect.expert", config.collect.expert, ("scripted", "endpoint", "policy")),
        ("ideas.source", config.ideas.source, ("library", "endpoint")),
        ("ideas.embedder", config.ideas.embedder, ("tfidf", "endpoint")),
    ):
        if value not in choices:
            raise ConfigError(f"config.{path} is {value!r}; choose one of {', '.join(choices)}")
        if value == "endpoint" and not config.endpoint.url:
            raise ConfigError(f"config.{path} is 'endpoint', and config.endpoint names none: set its url and model")
    if config.ideas.embedder == "endpoint" and not config.ideas.embedding_model:
        raise ConfigError("config.ideas.embedding_model is empty; config.ideas.embedder 'endpoint' needs its name")
    if config.ideas.source == "endpoint" and config.collect.expert == "scripted":
        raise ConfigError(
            "config.ideas.source is 'endpoint' and config.collect.expert 'scripted', which has code for the ideas of "
            "the library alone: set config.ideas.source to 'library', or another expert"
        )
    if config.ideas.source == "endpoint" and not config.ideas.keep:
        raise ConfigError("config.ideas.keep is 0; say how many of a language model's ideas are kept, for example 10")
    if config.collect.expert == "policy" and "collect" in config.stages and not config.policy.checkpoint:
        raise ConfigError("config.collect.expert is 'policy'; name it in config.policy.checkpoint")


def _check_training(config: Config) -> None:
    """Check adapters and optimizer state."""
    lora, optimizer = config.lora, config.optimizer
    if lora.rank and not lora.targets:
        raise ConfigError(f"config.lora.targets is empty; name some of {', '.join(LINEAR_MAPS)}")
    if unknown := sorted(set(lora.targets) - set(LINEAR_MAPS)):
        raise ConfigError(f"config.lora.targets names {unknown[0]!r}; choose among {', '.join(LINEAR_MAPS)}")
    if optimizer.rounding == "stochastic" and (config.policy.param_dtype != "bfloat16" or lora.rank):
        raise ConfigError(
            "config.optimizer.rounding is 'stochastic' and what is trained is float32; it takes "
            "config.policy.param_dtype='bfloat16' and config.lora.rank=0"
        )
    if optimizer.rounding == "nearest" and config.policy.param_dtype == "bfloat16" and not lora.rank:
        for stage, rate in (("sft", config.sft.learning_rate), ("rl", config.rl.learning_rate)):
            if stage in config.stages and rate < SMALLEST_BFLOAT16_STEP:
                raise ConfigError(
                    f"config.{stage}.learning_rate is {rate:g} and config.policy.param_dtype 'bfloat16': next to "
                    f"weights of {TYPICAL_WEIGHT}, updates below {SMALLEST_BFLOAT16_STEP:.1e} round to nothing. Set "
                    "config.optimizer.rounding to 'stochastic', config.policy.param_dtype to 'float32', or "
                    "config.lora.rank above 0"
                )
    if config.sft.optimizer == "muon" and (optimizer.moments == "factored" or lora.rank):
        raise ConfigError(
            f"config.sft.optimizer is 'muon', which takes neither factored moments (config.optimizer.moments is "
            f"{optimizer.moments!r}) nor adapters (config.lora.rank is {lora.rank}); choose 'adamw'"
        )
