"""The one loader of policies: from a Hugging Face folder or hub id, or from a run, with adapters merged.

A run's policy is named by the workdir (the last stage that has saved a step), by a stage (`WORKDIR/checkpoints/rl`: its
best step if the run keeps that, else its newest), or by a step. All commands and stages accept the same names and get
the same policy.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from mlagent_jax import models
from mlagent_jax.checkpoints import hub, hugging_face
from mlagent_jax.checkpoints.orbax import Checkpointer, CheckpointError
from mlagent_jax.models import lora
from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.parallelism import Rules

STAGES = ("rl", "sft")
"""Stages that save policies, the last first."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """Weights, and everything needed to use them."""

    config: models.ModelConfig
    graph: models.Graph
    params: models.Params
    tokenizer: Tokenizer
    origin: hugging_face.Origin | None = None
    """Origin of the checkpoint that it was made from; None: from scratch."""

    def with_params(self, params: models.Params) -> Self:
        return dataclasses.replace(self, params=params)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Dtype and devices of parameters."""

    dtype: str | None = None
    """Dtype of the parameters; None: as stored."""
    mesh: Mesh | None = None
    """Devices of the parameters; None: the default device."""
    rules: Rules | None = None
    """Table from logical to mesh axes; None: the default."""
    attention: str | None = None
    """Attention kernel; None: the default."""

    @property
    def options(self) -> dict[str, Any]:
        """Return options of `models.abstract` and `models.create`, without the dtype."""
        kernel = {} if self.attention is None else {"attention": self.attention}
        return {"mesh": self.mesh, "rules": self.rules, **kernel}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a run that decide which policies are in its workdir."""

    checkpoint: str
    """Base policy; empty: from scratch, with random weights from `seed`."""
    seed: int
    param_dtype: str
    lora: models.LoRA | None
    keeps_best: tuple[str, ...]
    """Stages whose policy is the step with the best evaluation instead of the last."""
    sft_is_given: bool
    """Whether the checkpoint serves as the sft policy."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], done: Callable[[str], bool]) -> Self:
        """Make the recipe from a run's config.json; `done` returns whether a stage has ended."""
        policy, adapters = settings.get("policy", {}), settings.get("lora", {})
        known = {field.name for field in dataclasses.fields(models.LoRA)}
        chosen = {name: tuple(x) if isinstance(x, list) else x for name, x in adapters.items() if name in known}
        checkpoint = policy.get("checkpoint", "")
        best = {
            "sft": settings.get("sft", {}).get("patience", 0) > 0,
            "rl": settings.get("validation", {}).get("keep_best", False),
        }
        return cls(
            checkpoint=checkpoint,
            seed=settings.get("seed", 0),
            param_dtype=policy.get("param_dtype", "float32"),
            lora=models.LoRA(**chosen) if adapters.get("rank") else None,
            keeps_best=tuple(stage for stage, keeps in best.items() if keeps),
            sft_is_given=bool(checkpoint) and "sft" not in settings.get("stages", ()) and not done("sft"),
        )

    @classmethod
    def read(cls, workdir: epath.Path) -> Self:
        """Read a workdir's files; without them (a copied stage folder), use the defaults."""
        found = {}
        for name in ("config.json", "run.json"):
            path = workdir / name
            found[name] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return cls.of(found["config.json"], lambda stage: stage in found["run.json"].get("done", ()))


@dataclasses.dataclass(frozen=True)
class Saved:
    """Place of a policy that a run has saved."""

    workdir: epath.Path
    stage: str
    step: int | None = None
    """Number of the step; None: the step that represents the stage (see `step_of`)."""

    @property
    def folder(self) -> epath.Path:
        """Return the folder of the stage's steps."""
        return self.workdir / "checkpoints" / self.stage


def locate(place: str | os.PathLike[str]) -> Saved | None:
    """Return what a run has saved at `place`; None if `place` is not a workdir, a stage or a step.

    Raises:
      FileNotFoundError: `place` is a workdir in which no stage has saved a complete step.
    """
    folder = epath.Path(place)
    if "://" not in os.fspath(place):
        folder = folder.absolute()
    if folder.name.isdigit() and (folder.parent / "model").is_dir():
        return Saved(folder.parent.parent.parent, folder.parent.name, int(folder.name))
    if (folder / "model").is_dir():
        return Saved(folder.parent.parent, folder.name)
    if not (folder / "checkpoints").is_dir():
        return None
    for stage in STAGES:
        saved = Saved(folder, stage)
        if (saved.folder / "model").is_dir():
            with Checkpointer(saved.folder, read_only=True) as steps:
                if steps.latest() is not None:
                    return saved
    raise FileNotFoundError(f"{folder / 'checkpoints'} has no saved policy yet: expected {' or '.join(STAGES)}")


def load(place: str | os.PathLike[str], placement: Placement | None = None) -> Policy:
    """Load the policy at a place: a folder or hub id of Hugging Face, a workdir, a stage or a step.

    Raises:
      FileNotFoundError: `place` has no checkpoint.
      ValueError: the model is not supported, or config, weights and tokenizer do not fit together.
    """
    placement, saved = placement or Placement(), locate(place)
    if saved is not None:
        return load_saved(saved, Recipe.read(saved.workdir), placement)
    folder = hub.fetch(place)
    tokenizer = Tokenizer.load(folder)
    _check_rows(hugging_face.read_config(folder), tokenizer, folder)
    loaded = hugging_face.load(folder, dtype=placement.dtype, **placement.options)
    return Policy(*loaded, tokenizer, hugging_face.read_origin(folder))


def load_saved(saved: Saved, recipe: Recipe, placement: Placement) -> Policy:
    """Load a policy of a run; adapters are merged into the policy that their stage started from.

    Raises:
      FileNotFoundError, ValueError: as `load`.
    """
    about = saved.folder / "model"
    config, tokenizer = hugging_face.read_config(about), Tokenizer.load(about)
    _check_rows(config, tokenizer, about)
    saved = resolved(saved, recipe)
    with _steps(saved, recipe) as steps:
        whole = steps.shapes(saved.step).get("policy/embedder/embedding")
    if whole is None:
        start = load_start(saved, recipe, dataclasses.replace(placement, dtype=recipe.param_dtype))
        params = lora.merge(start.params, load_adapters(saved, recipe, start, placement.mesh), recipe.lora)
        graph, stored = start.graph, jnp.dtype(recipe.param_dtype)
    else:
        stored = whole.dtype
        graph, target = models.abstract(config, dtype=stored, **placement.options)
        params = _restore(saved, recipe, target)
    if placement.dtype is not None and jnp.dtype(placement.dtype) != stored:
        params = jax.tree.map(lambda leaf: leaf.astype(placement.dtype), params)
    return Policy(config, graph, params, tokenizer, hugging_face.read_origin(about))


def load_start(saved: Saved, recipe: Recipe, placement: Placement) -> Policy:
    """Load the frozen policy that the adapters of a stage were trained on: sft's for rl, else the base."""
    if saved.stage == "rl" and not recipe.sft_is_given:
        return load_saved(Saved(saved.workdir, "sft"), recipe, placement)
    if recipe.checkpoint:
        return load(recipe.checkpoint, placement)
    about = saved.folder / "model"
    config, options = hugging_face.read_config(about), placement.options
    graph, params = models.create(config, jax.random.key(recipe.seed), dtype=jnp.dtype(placement.dtype), **options)
    return Policy(config, graph, params, Tokenizer.load(about))


def load_adapters(saved: Saved, recipe: Recipe, start: Policy, mesh: Mesh | None) -> models.Params:
    """Load the adapters that a stage trained on the frozen `start`.

    Raises:
      ValueError: the run's settings have no adapters.
    """
    if recipe.lora is None:
        raise ValueError(
            f"{saved.folder} holds adapters alone, and {saved.workdir / 'config.json'} does not say of which kind: "
            "name the run's own workdir, or export there"
        )
    return _restore(saved, recipe, lora.abstract(lora.adapted(start.graph, recipe.lora), mesh))


def load_value_head(place: str | os.PathLike[str]) -> dict[str, jax.Array] | None:
    """Load the critic's head, `kernel` [hidden] and `bias` [], that rl trained on the policy at `place`.

    Returns None if there is none: no step of rl, an estimator without a critic, or a critic with a backbone of its own.
    """
    saved = locate(place)
    if saved is None or saved.stage != "rl":
        return None
    recipe = Recipe.read(saved.workdir)
    with _steps(saved, recipe) as steps:
        step = step_of(saved, recipe, steps)
        shapes = steps.shapes(step)
        head = {name: shapes.get(f"critic/{name}") for name in ("kernel", "bias")}
        if None in head.values() or any(name.startswith("critic/backbone") for name in shapes):
            return None
        return steps.restore(step, {"critic": head}, partial=True)[0]["critic"]


def resolved(saved: Saved, recipe: Recipe) -> Saved:
    """Return `saved` with the number of its step.

    Raises:
      FileNotFoundError, CheckpointError: as `step_of`.
    """
    with _steps(saved, recipe) as steps:
        return dataclasses.replace(saved, step=step_of(saved, recipe, steps))


def step_of(saved: Saved, recipe: Recipe, steps: Checkpointer) -> int:
    """Return the number of the step: the one named, else the best if the stage keeps it, else the newest.

    Raises:
      FileNotFoundError: the stage has no complete step.
      CheckpointError: the named step was not kept.
    """
    kept = steps.steps()
    if not kept:
        raise FileNotFoundError(f"{saved.folder} holds no checkpoint that is whole yet")
    if saved.step is not None and saved.step not in kept:
        raise CheckpointError(
            f"{saved.stage}@{saved.step} was not kept, there are {', '.join(map(str, kept))}: set config.rl.keep_every "
            "to a divisor of it before the run"
        )
    if saved.step is not None:
        return saved.step
    best = steps.best() if saved.stage in recipe.keeps_best else None
    return kept[-1] if best is None else best


def _steps(saved: Saved, recipe: Recipe) -> Checkpointer:
    return Checkpointer(saved.folder, read_only=True, keep_best=int(saved.stage in recipe.keeps_best))


def _restore(saved: Saved, recipe: Recipe, target: Any) -> Any:
    with _steps(saved, recipe) as steps:
        return steps.restore(step_of(saved, recipe, steps), {"policy": target}, partial=True)[0]["policy"]


def _check_rows(config: models.ModelConfig, tokenizer: Tokenizer, place: epath.Path) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer in {place} has {tokenizer.vocab_size} tokens and the model's embedding {config.vocab_size} "
            "rows: the tokens beyond them have no embedding; resize the embedding, or take the tokenizer of this model"
        )
