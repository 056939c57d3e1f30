"""The range of every number of a config, in one table; `check_numbers` looks each of them up.

A number that is missing here, or a row without a field, fails a test (tests/mlagent_jax/test_config.py). NaN and
infinities are in no range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from mlagent_jax.runtime.errors import ConfigError

MOST_TEMPERATURE, MOST_TOP_K = 1e30, 2**31 - 1
"""Equal to the limits in `sampling.config`, which is too slow to import here."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Possible values of a number.

    Attributes:
      words: Description for messages, after "it ".
      low, high: Bounds, included unless `open_low` or `open_high`.
      reason: Why values outside make no sense, where that is not plain.
    """

    words: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    reason: str = ""

    def holds(self, value: float) -> bool:
        """Return whether `value` is finite and within the bounds."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below


ANY = Range("is a finite number")
COUNT = Range("must be above 0", low=1)
FROM_ZERO = Range("is 0 or above", low=0)
POSITIVE = Range("must be above 0", low=0, open_low=True)
SHARE = Range("is a share, from 0 to 1", low=0, high=1)
PART = Range("is a share, from 0 to below 1", low=0, high=1, open_high=True)
AXIS = Range("is a number of devices, or -1 for all remaining ones", low=-1)

RANGES: dict[str, Range] = {
    "seed": FROM_ZERO,
    **dict.fromkeys(
        (
            *("policy.hidden_size", "policy.num_layers", "policy.num_heads", "policy.num_kv_heads"),
            *("policy.intermediate_size", "tokenizer.vocab_size"),
            *("prompt.max_prompt_tokens", "prompt.max_action_tokens"),
            *("collect.trajectories", "collect.steps", "collect.min_ideas", "ideas.candidates"),
            *("sft.epochs", "sft.renderings", "sft.batch_size", "sft.row_tokens"),
            *("sampling.slots", "rl.iterations", "rl.episode_steps", "rl.states", "rl.samples", "rl.epochs"),
            *("rl.minibatches", "validation.states", "validation.samples", "pool.refresh_size"),
            *("evaluate.samples", "evaluate.trajectories", "evaluate.best_of", "evaluate.steps"),
            *("export.max_shard_mb", "endpoint.max_tokens", "endpoint.concurrency", "endpoint.attempts"),
        ),
        COUNT,
    ),
    **dict.fromkeys(
        (
            *("lora.rank", "tasks.micro_train", "tasks.micro_held_out", "tasks.seed", "workers.slots"),
            *("ideas.keep", "collect.max_ideas", "filter.max_characters"),
            *("sft.micro_batch", "sft.weight_decay", "sft.evaluate_every", "sft.patience", "sft.checkpoint_seconds"),
            *("rl.critic_warmup", "rl.critic_pretraining", "rl.micro_batch", "rl.micro_tokens", "rl.value_clip"),
            *("rl.value_coefficient", "rl.entropy_coefficient", "rl.kl_coefficient", "rl.reference_every"),
            *("rl.resample_executions", "rl.max_staleness", "rl.straggler_seconds", "rl.keep_every"),
            *("validation.every", "validation.patience", "pool.max_depth"),
            *("evaluate.states_held_in", "evaluate.states_held_out"),
            *("evaluate.episode_tasks_held_in", "evaluate.episode_tasks_held_out"),
            *("endpoint.temperature", "endpoint.requests_per_minute", "endpoint.tokens_per_minute"),
            *("endpoint.backoff_seconds", "endpoint.budget_tokens", "endpoint.budget_cost"),
            *("endpoint.prompt_price", "endpoint.completion_price"),
        ),
        FROM_ZERO,
    ),
    **dict.fromkeys(
        (
            *("lora.alpha", "workers.silence_seconds", "endpoint.timeout_seconds", "evaluate.minutes"),
            *("sft.learning_rate", "sft.max_grad_norm", "rl.learning_rate", "rl.critic_learning_rate"),
            *("rl.max_grad_norm", "rl.max_kl"),
        ),
        POSITIVE,
    ),
    **dict.fromkeys(
        (
            *("collect.error_rate", "collect.look_rate", "sft.idea_rate", "sft.warmup_fraction"),
            *("rl.best_of_weight", "pool.refresh_fraction"),
        ),
        SHARE,
    ),
    **dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.tensor"), AXIS),
    "sft.held_out_fraction": PART,
    "filter.min_gain": ANY,
    "rl.best_of": COUNT,
    "endpoint.top_p": Range("is above 0 and at most 1 (all)", low=0, high=1, open_low=True),
    "sampling.top_p": Range("is above 0 and at most 1 (all)", low=0, high=1, open_low=True),
    "sampling.top_k": Range(f"is from 0 (all) to {MOST_TOP_K}", low=0, high=MOST_TOP_K),
    "sampling.temperature": Range(f"is from 0 (greedy) to {MOST_TEMPERATURE:g}", low=0, high=MOST_TEMPERATURE),
    "rl.checkpoint_every": Range(
        "must be above 0", low=1, reason="without a checkpoint an interrupted run starts again; for few, name a number "
        "of iterations above config.rl.iterations"
    ),
    "prompt.history_steps": Range(
        "must be above 0", low=1, reason="a prompt without the last step's result hides from the policy what it did"
    ),
}  # fmt: skip


def numbers(section: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield (path, value) of every int and float field of a dataclass and of the dataclasses in it."""
    for field in dataclasses.fields(section):
        value, place = getattr(section, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{place}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield place, value


def check_numbers(config: Any) -> None:
    """Check every number of a config against its range.

    Raises:
      ConfigError: One is outside; the message names the field, its value and what is possible.
    """
    for path, value in numbers(config):
        allowed = RANGES.get(path, ANY)
        if not allowed.holds(value) or (allowed is AXIS and value == 0):
            reason = f": {allowed.reason}" if allowed.reason else ""
            raise ConfigError(f"config.{path} is {value!r}; it {allowed.words}{reason}")
