"""Settings of a run, with units and defaults; the files under `configs/` change what they need.

A config file returns `default_config()` with changes: an ml_collections ConfigDict, so that absl flags can override any
field (`--config.rl.loss=ppo_clip:low=0.1`). The program reads the frozen `Config` that `freeze` returns.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from mlagent_jax.optim.config import OptimizerConfig
from mlagent_jax.settings import typed_fields
from mlagent_jax.settings.checks import STAGES, check
from mlagent_jax.settings.hosts import (
    EndpointConfig,
    ProfileConfig,
    TasksConfig,
    WorkersConfig,
)
from mlagent_jax.settings.policy import (
    LoRAConfig,
    MeshConfig,
    PlanConfig,
    PolicyConfig,
    PromptConfig,
    TokenizerConfig,
)
from mlagent_jax.settings.stages import (
    CollectConfig,
    EvaluateConfig,
    ExportConfig,
    FilterConfig,
    IdeasConfig,
    PoolConfig,
    RLConfig,
    SamplingConfig,
    SFTConfig,
    TrackingConfig,
    ValidationConfig,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    stages: tuple[str, ...] = STAGES
    """Stages in order. A stage may come twice, for example evaluate before and after rl."""
    seed: int = 0
    """Seed of all randomness except the tasks' data."""
    plugins: tuple[str, ...] = ()
    """Python files (paths that end in .py) and modules that register your own functions when imported. Workers on other
    hosts read them from $MLAGENT_PLUGINS."""
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    plan: PlanConfig = dataclasses.field(default_factory=PlanConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    tasks: TasksConfig = dataclasses.field(default_factory=TasksConfig)
    workers: WorkersConfig = dataclasses.field(default_factory=WorkersConfig)
    endpoint: EndpointConfig = dataclasses.field(default_factory=EndpointConfig)
    ideas: IdeasConfig = dataclasses.field(default_factory=IdeasConfig)
    collect: CollectConfig = dataclasses.field(default_factory=CollectConfig)
    filter: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    sft: SFTConfig = dataclasses.field(default_factory=SFTConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    rl: RLConfig = dataclasses.field(default_factory=RLConfig)
    pool: PoolConfig = dataclasses.field(default_factory=PoolConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)


_PACE = ("url", "concurrency", "attempts", "backoff_seconds", "timeout_seconds", "key_variable")
_LIMITS = ("requests_per_minute", "tokens_per_minute", "budget_tokens", "budget_cost")
MAY_CHANGE = (
    *("stages", "workers", "mesh", "plan", "sampling.slots", "sampling.rules", "optimizer.placement"),
    *("policy.remat", "policy.attention", "sft.micro_batch", "rl.micro_batch", "rl.micro_tokens"),
    *("sft.checkpoint_seconds", "rl.checkpoint_every", "tracking", "profile", "plugins"),
    *(f"endpoint.{name}" for name in (*_PACE, *_LIMITS)),
)
"""Settings that may change when a workdir is reopened: they decide where and how fast a run computes, not its results.
"""


def default_config() -> ConfigDict:
    """Return all fields at their defaults; config files change what they need."""
    return ConfigDict(dataclasses.asdict(Config()))


def freeze(config: ConfigDict) -> Config:
    """Return the typed, checked form.

    Raises:
      ConfigError: An unknown field (the nearest is named), a wrong type or an impossible value.
    """
    frozen = typed_fields.read(Config, config.to_dict(), "config")
    check(frozen)
    return frozen


def differences(stored: dict[str, Any], config: Config) -> list[str]:
    """List fields that differ between a workdir's stored config and this one, except `MAY_CHANGE`: `name: stored ->
    new`."""
    new, changed = dataclasses.asdict(config), []

    def walk(old: Any, now: Any, default: Any, path: str) -> None:
        if path in MAY_CHANGE:
            return
        if isinstance(old, dict) and isinstance(now, dict):
            old = default | old  # a workdir older than a field has its default
            for name in sorted({*old, *now}):
                walk(old.get(name), now.get(name), default.get(name, {}), f"{path}.{name}" if path else name)
        elif _plain(old) != _plain(now):
            changed.append(f"{path}: {old!r} -> {now!r}")

    walk(stored, new, dataclasses.asdict(Config()), "")
    return changed


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_field(path: str) -> Any:
    """Return the type of the field with this name, for example `rl.loss`.

    Raises:
      ConfigError: There is no such field; the message names the nearest.
    """
    return typed_fields.find(Config, path, "config")
