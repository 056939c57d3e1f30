"""Policies of a run: weights, architecture and tokenizer, and where each policy comes from."""

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
from mlagent_jax.runs.shapes import shape_from_scratch
from mlagent_jax.runtime import processes
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.sampling import Distribution, SamplerConfig, TokenSampler

VOCABULARY = "tokenizer.json"
"""File without which a run's own tokenizer is incomplete."""
REPLY_WORDS = (
    'Action: Edit Script (Cell)\nAction Input: {"script_name": "train.py", "cell": "',
    'Action: Execute Script\nAction Input: {"script_name": "train.py"}',
    'Action: List Files\nAction Input: {"dir_path": "."}',
    '"}\n```python\n',
    "\n```",
)
"""Fixed words of the compact replies: single tokens, so that a small policy spends no capacity on them."""
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
"""Fixed words of the embedded tasks' scripts, for the same reason."""


def renderer(run: Run, policy: Policy) -> Renderer:
    """Return the run's renderer, with the policy's tokenizer."""
    return Renderer(policy.tokenizer, run.config.prompt, run.specs)


def base_policy(run: Run) -> Policy:
    """Return the policy before any training of this run: the configured checkpoint, or random weights.

    Raises:
      ConfigError: The checkpoint cannot be read; or, from scratch, the vocabulary does not exist yet (the sft stage
        makes it) or the mesh does not divide a dimension.
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


def checkpoint_policy(run: Run, checkpoint: str, field: str = "evaluate.policies") -> Policy:
    """Return the policy of a Hugging Face folder, a hub id or another run, which `field` of the config names.

    Raises:
      ConfigError: It cannot be read.
    """
    try:
        return policies.load(checkpoint, placement(run))
    except (OSError, ValueError) as error:
        raise ConfigError(f"config.{field} names {checkpoint!r}: {error}") from error


def make_vocabulary(run: Run, corpus: list[str]) -> None:
    """Train the vocabulary of a policy from scratch on `corpus`, unless it exists.

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
    """Return the checkpointer of a training stage."""
    keep_every = run.config.rl.keep_every if stage == "rl" else 0
    keep_best = int(stage in _recipe(run).keeps_best)
    return Checkpointer(run.workdir / "checkpoints" / stage, keep=keep, keep_best=keep_best, keep_every=keep_every)


def describe(run: Run, stage: str, policy: Policy) -> None:
    """Write everything of a policy but its weights next to a stage's checkpoints, so that they can be exported
    alone."""
    if run.is_first:
        folder = run.workdir / "checkpoints" / stage / "model"
        keep_beside_steps(folder)
        hugging_face.describe(folder, policy.config, policy.tokenizer, policy.origin)


@dataclasses.dataclass(frozen=True)
class Training:
    """Policy in training: the parameters that the optimizer updates, apart from the frozen ones."""

    start: Policy
    """Policy before the stage."""
    graph: Any
    params: Any
    """Trained parameters: all, or adapters of `start`."""
    base: Any = None
    """Frozen parameters of `start` with adapters; else None."""
    lora: models.LoRA | None = None

    def whole(self, params: Any) -> Any:
        """Return all parameters that `graph` needs, given the trained ones; no array is copied."""
        return params if self.base is None else lora.join(self.base, params)

    def finished(self, params: Any) -> Policy:
        """Return the policy after training, given the trained parameters; adapters are merged."""
        if self.base is None:
            return self.start.with_params(params)
        return self.start.with_params(lora.merge(self.base, params, self.lora))


def training(run: Run, start: Policy) -> Training:
    """Return a stage's training of `start`, with adapters if the config has them.

    Raises:
      ConfigError: The model lacks a target of the adapters.
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
    """Return dtype, mesh, rules and attention kernel of a run's policies."""
    config = run.config.policy
    return policies.Placement(config.param_dtype, run.devices.mesh, run.devices.rules, config.attention)


def trained_policy(run: Run, stage: str, step: int | None = None) -> Policy:
    """Return the final policy of a stage of this run (`base`, `sft` or `rl`), or the one after `step`.

    `sft` is the base policy if this run names a checkpoint and has never had an sft stage: then the checkpoint is the
    SFT policy.

    Raises:
      ConfigError: The stage has not been run in this workdir, or that step was not kept.
    """
    recipe = _recipe(run)
    if stage == "base" or (stage == "sft" and recipe.sft_is_given):
        return base_policy(run)
    return policies.load_saved(_saved(run, recipe, stage, step), recipe, placement(run))


def trained_adapters(run: Run, stage: str) -> tuple[Any, models.LoRA]:
    """Return the adapters from the base policy to a stage's policy, including those of earlier stages.

    Raises:
      ConfigError: There are none, or the stage has not been run in this workdir.
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
    """Return the checkpoint of a finished stage, the last or that of `step`; all processes agree on its number.

    Raises:
      ConfigError: The stage has not finished in this workdir, or that step was not kept.
    """
    saved = policies.Saved(run.workdir, stage, step)
    if not run.is_done(stage):
        raise ConfigError(f"this workdir has no finished {stage} policy: run the stage {stage!r} first")
    try:
        with checkpointer(run, stage) as steps:
            last = processes.agree(lambda: policies.step_of(saved, recipe, steps))
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return dataclasses.replace(saved, step=last)


def abstract(arrays: Any) -> Any:
    """Return shapes, dtypes and shardings of a pytree of arrays, as the target of a restore."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays)


def make_actor(run: Run, policy: Policy, dispatch_lock: contextlib.AbstractContextManager[Any] | None = None) -> Actor:
    """Return the policy's actor, with the run's sampling settings.

    Args:
      run: Run with its config.
      policy: Source of graph and tokenizer; each call passes its own parameters.
      dispatch_lock: Lock held while a sampler program is dispatched to the devices.
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
        sampler = TokenSampler(policy.graph, settings, dispatch_lock, mesh=run.devices.mesh, rules=sampling.rules)
    except ValueError as error:
        raise ConfigError(f"config.sampling.rules: {error}") from error
    return Actor(sampler, renderer(run, policy), run.config.seed)
