"""A policy: weights, their shape and their tokenizer; where the policies of a run come from."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from environments.tasks.generated.scripts import CELLS
from mlagent_jax import models
from mlagent_jax.agents.actor import Actor
from mlagent_jax.agents.prompts import COMPACT_WORDS, Renderer
from mlagent_jax.checkpoints import hugging_face, policies
from mlagent_jax.checkpoints.folders import whole_folder
from mlagent_jax.checkpoints.orbax import Checkpointer, keep_beside_steps
from mlagent_jax.checkpoints.policies import Policy
from mlagent_jax.models import lora
from mlagent_jax.models.tokenizer import Tokenizer, train_tokenizer
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime import processes
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.sampling import Distribution, SamplerConfig, TokenSampler
from mlagent_jax.settings.schema import PolicyConfig

VOCABULARY = "tokenizer.json"
"""Of a run's own tokenizer, the file without which it is not whole."""
REPLY_WORDS = (
    'Action: Edit Script (Cell)\nAction Input: {"script_name": "train.py", "cell": "',
    'Action: Execute Script\nAction Input: {"script_name": "train.py"}',
    'Action: List Files\nAction Input: {"dir_path": "."}',
    '"}\n```python\n',
    "\n```",
)
"""Fixed words of the compact replies: tokens of their own, so that a small policy spends nothing on them."""
SCRIPT_WORDS = (
    "# %% data\n",
    *(f"\n# %% {cell}\n" for cell in CELLS[1:]),
    "from helper import load, build, check, save\nx, y, z = load(",
    "from sklearn.",
    "steps = [",
    "target = ",
    "model = ",
    "model = build(steps, model, target)",
    "\ncheck(model, x, y)",
    "\nmodel.fit(x, y)",
    "save(model, z",
)
"""Fixed words of the embedded tasks' scripts, likewise."""


def renderer(run: Run, policy: Policy) -> Renderer:
    """The run's renderer, in the policy's tokens."""
    return Renderer(policy.tokenizer, run.config.prompt, run.specs)


def base_policy(run: Run) -> Policy:
    """The policy before any training of this run: the checkpoint that the config names, or fresh weights.

    Raises:
      ConfigError: the checkpoint cannot be read; or from scratch, and no vocabulary has been made yet (the sft stage
        makes it), or the mesh does not divide a dimension.
    """
    config = run.config.policy
    dtype = jnp.dtype(config.param_dtype)
    if config.checkpoint:
        return checkpoint_policy(run, config.checkpoint, "policy.checkpoint")
    folder = run.workdir / "tokenizer"
    if not (folder / VOCABULARY).exists():
        raise ConfigError(
            "config.policy.checkpoint is empty and this workdir has no policy: name a Hugging Face checkpoint, or run "
            "the stages collect and sft first"
        )
    tokenizer = Tokenizer.load(str(folder))
    shape = shape_from_scratch(config, tokenizer.vocab_size)
    options = {"dtype": dtype, "mesh": run.devices.mesh, "rules": run.devices.rules, "attention": config.attention}
    try:
        graph, params = models.create(shape, jax.random.key(run.config.seed), **options)
    except ValueError as error:
        raise ConfigError(f"config.mesh or config.policy: {error}") from error
    return Policy(shape, graph, params, tokenizer)


def shape_from_scratch(config: PolicyConfig, vocab_size: int) -> models.ModelConfig:
    """The architecture of a policy that begins with no checkpoint."""
    return models.ModelConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.hidden_size // config.num_heads,
        intermediate_size=config.intermediate_size,
        model_type="qwen2",
        attention_bias=True,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        dtype=config.param_dtype,
    )


def checkpoint_policy(run: Run, checkpoint: str, field: str = "evaluate.policies") -> Policy:
    """The policy of a Hugging Face folder or hub id, or of another run, which `field` of the config names.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        return policies.load(checkpoint, placement(run))
    except (OSError, ValueError) as error:
        raise ConfigError(f"config.{field} names {checkpoint!r}: {error}") from error


def make_vocabulary(run: Run, corpus: list[str]) -> None:
    """Train the vocabulary of a policy from scratch on `corpus`, unless it is there.

    Raises:
      ConfigError: `tokenizer.vocab_size` does not fit the corpus.
    """
    processes.agree(lambda: _make_vocabulary(run, corpus))


def _make_vocabulary(run: Run, corpus: list[str]) -> None:
    folder = run.workdir / "tokenizer"
    if not (folder / VOCABULARY).exists():
        words = (*COMPACT_WORDS, *REPLY_WORDS, *SCRIPT_WORDS)
        with whole_folder(folder, VOCABULARY) as draft:
            try:
                train_tokenizer(corpus, run.config.tokenizer.vocab_size, words, draft)
            except ValueError as error:
                raise ConfigError(f"config.tokenizer: {error}") from error


def checkpointer(run: Run, stage: str, keep: int = 2) -> Checkpointer:
    """Checkpoints of a training stage."""
    keep_every = run.config.rl.keep_every if stage == "rl" else 0
    keep_best = int(stage in _recipe(run).keeps_best)
    return Checkpointer(run.workdir / "checkpoints" / stage, keep=keep, keep_best=keep_best, keep_every=keep_every)


def describe(run: Run, stage: str, policy: Policy) -> None:
    """Write what a stage's checkpoints lack to be exported by themselves: all of the policy but its weights."""
    if run.is_first:
        folder = run.workdir / "checkpoints" / stage / "model"
        keep_beside_steps(folder)
        hugging_face.describe(folder, policy.config, policy.tokenizer, policy.origin)


@dataclasses.dataclass(frozen=True)
class Training:
    """A policy in training: what the optimizer updates of it, apart from what stays as it is."""

    start: Policy
    """Before the stage."""
    graph: Any
    params: Any
    """What is trained: everything, or adapters of `start`."""
    base: Any = None
    """With adapters, the parameters of `start`, which stay; else None."""
    lora: models.LoRA | None = None

    def whole(self, params: Any) -> Any:
        """All that `graph` takes, given what is trained; no array is copied."""
        return params if self.base is None else lora.join(self.base, params)

    def finished(self, params: Any) -> Policy:
        """The policy after training, given what was trained: a plain one, adapters merged."""
        if self.base is None:
            return self.start.with_params(params)
        return self.start.with_params(lora.merge(self.base, params, self.lora))


def training(run: Run, start: Policy) -> Training:
    """A stage's training of `start`, by adapters where the config has them.

    Raises:
      ConfigError: the model lacks a linear map that is to have an adapter.
    """
    if not run.config.lora.rank:
        return Training(start, start.graph, start.params)
    settings = models.LoRA(**dataclasses.asdict(run.config.lora))
    try:
        graph = lora.adapted(start.graph, settings)
    except ValueError as error:
        raise ConfigError(f"config.lora.targets: {error}") from error
    adapters = lora.create(graph, jax.random.key(run.config.seed), run.devices.mesh)
    return Training(start, graph, adapters, start.params, settings)


def placement(run: Run) -> policies.Placement:
    """How a run holds its policies."""
    config = run.config.policy
    return policies.Placement(config.param_dtype, run.devices.mesh, run.devices.rules, config.attention)


def trained_policy(run: Run, stage: str, step: int | None = None) -> Policy:
    """The policy that a stage of this run ended with (`base`, `sft` or `rl`), or had after `step`.

    `sft` is the base policy itself where this run names a checkpoint and has no sft stage, now or before: then the
    checkpoint is one.

    Raises:
      ConfigError: the stage has not been run in this workdir, or that step of it was not kept.
    """
    recipe = _recipe(run)
    if stage == "base" or (stage == "sft" and recipe.sft_is_given):
        return base_policy(run)
    return policies.load_saved(_saved(run, recipe, stage, step), recipe, placement(run))


def trained_adapters(run: Run, stage: str) -> tuple[Any, models.LoRA]:
    """The adapters that lead from the base policy to a stage's, those of the stages before it included.

    Raises:
      ConfigError: there are none, or the stage has not been run in this workdir.
    """
    recipe, base = _recipe(run), base_policy(run)
    if recipe.lora is None:
        raise ConfigError("config.export.layout is 'peft' and config.lora.rank 0: there are no adapters, use 'merged'")

    def adapters(of: str) -> Any:
        return policies.load_adapters(_saved(run, recipe, of), recipe, base, run.devices.mesh)

    if stage == "sft" or recipe.sft_is_given:
        return adapters(stage), recipe.lora
    both = lora.concatenate(adapters("sft"), adapters(stage))
    return both, dataclasses.replace(recipe.lora, rank=2 * recipe.lora.rank, alpha=2 * recipe.lora.alpha)


def _recipe(run: Run) -> policies.Recipe:
    return policies.Recipe.of(dataclasses.asdict(run.config), run.is_done)


def _saved(run: Run, recipe: policies.Recipe, stage: str, step: int | None = None) -> policies.Saved:
    """What a finished stage has saved in the end, or after `step`, by the same number in all processes.

    Raises:
      ConfigError: it has not been run to its end in this workdir, or that step was not kept.
    """
    saved = policies.Saved(run.workdir, stage, step)
    if not run.is_done(stage):
        raise ConfigError(f"this workdir has no finished {stage} policy: run the stage {stage!r} first")
    try:
        with checkpointer(run, stage) as steps:
            found = processes.agree(lambda: policies.step_of(saved, recipe, steps))
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return dataclasses.replace(saved, step=found)


def abstract(arrays: Any) -> Any:
    """Shapes, dtypes and shardings of a pytree of arrays, for what is to be restored in their place."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays)


def make_actor(run: Run, policy: Policy, turn: contextlib.AbstractContextManager[Any] | None = None) -> Actor:
    """The policy's actor, at the run's sampling settings.

    Args:
      run: with its config.
      policy: whose graph and tokenizer are used; the parameters come with each call.
      turn: held while one of the sampler's programs is handed to the devices.
    """
    sampling, prompt = run.config.sampling, run.config.prompt
    settings = SamplerConfig(
        max_new_tokens=prompt.max_action_tokens,
        distribution=Distribution(sampling.temperature, sampling.top_k, sampling.top_p),
        slots=sampling.slots,
        stop_token_ids=policy.tokenizer.stop_ids,
        pad_id=policy.tokenizer.pad_id,
        compute_dtype=run.config.policy.compute_dtype,
    )
    try:
        sampler = TokenSampler(policy.graph, settings, turn, mesh=run.devices.mesh, rules=sampling.rules)
    except ValueError as error:
        raise ConfigError(f"config.sampling.rules: {error}") from error
    return Actor(sampler, renderer(run, policy), run.config.seed)
