"""Checks that end a run of rl: a diverged update, or two programs that disagree on the same weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from mlagent_jax.models import precision
from mlagent_jax.rl.in_flight import TrainingRow
from mlagent_jax.rl.ppo import Batch
from mlagent_jax.rl.replay import write_batch
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime.errors import DivergedError
from mlagent_jax.settings.schema import Config

MIN_EFFECTIVE_SAMPLES = 0.5
"""Effective share of a batch's tokens under its importance weights, below which a warning is logged."""

log = logging.getLogger(__name__)


def check_divergence(run: Run, iteration: int, values: Mapping[str, float], taken: Sequence[TrainingRow]) -> None:
    """Stop on NaN or an exploding KL, and save the batch for inspection.

    Args:
      values: means over the update.

    Raises:
      DivergedError: a value is NaN or infinite, or the KL to the reference exceeds `max_kl`.
    """
    watched = {name: values[name] for name in ("kl", "policy_loss", "value_loss", "grad_norm")}
    max_kl = run.config.rl.max_kl
    if all(map(math.isfinite, watched.values())) and values["kl"] <= max_kl:
        return
    path = run.workdir / "diverged.jsonl"
    if run.is_first:
        write_batch(path, taken)
    figures = ", ".join(f"{name} {value:.3g}" for name, value in watched.items())
    raise DivergedError(
        f"iteration {iteration}: {figures} (max_kl is {max_kl}); its batch is in {path}. "
        "Lower config.rl.learning_rate or raise config.rl.kl_coefficient in a new workdir"
    )


def check_sampler(run: Run, version: int, batch: Batch, log_probs: np.ndarray, taken: Sequence[TrainingRow]) -> None:
    """Check that sampler and trainer agree on the same weights: a difference would be a silent off-policy bias.

    Args:
      version: version of the trainer's weights; rows of an older version are not compared.
      log_probs: the trainer's log-probs of the batch's action tokens, float32 [batch, action].

    Raises:
      DivergedError: they disagree.
    """
    same = np.zeros(len(batch.rewards), bool)
    same[: len(taken)] = [row.version == version for row in taken]
    compared = batch.mask & same[:, None]
    if not compared.any():
        return
    gap, tolerance = float(np.abs(log_probs - batch.behaviour_log_probs)[compared].mean()), _tolerance(run.config)
    if not gap <= tolerance:
        raise DivergedError(
            f"sampler and trainer differ by {gap:.3g} nats a token at the same weights (tolerance {tolerance:.1g}): "
            "this is a bug in one of them; check config.policy.attention, .matmul_precision and the dtypes"
        )


def warn_of_mismatch(iteration: int, values: Mapping[str, float]) -> None:
    """Warn if few samples are effective: the behaviour policy is far from the policy in training.

    Args:
      values: means over the update, including `effective_samples` and `behaviour_gap`.
    """
    share = values["effective_samples"]
    if share < MIN_EFFECTIVE_SAMPLES:
        log.warning(
            "iteration %d: importance weights leave an effective sample size of %.0f%% (sampler and trainer differ by "
            "%.3g nats a token): lower config.rl.max_staleness, tighten config.rl.corrections "
            "(truncate_tokens:limit=2), or set config.policy.compute_dtype to float32",
            *(iteration, 100 * share, values["behaviour_gap"]),
        )


def check_ratio(run: Run, iteration: int, gap: float) -> None:
    """Check that the ratios of a batch's first step are 1: both policies are the same there.

    Args:
      gap: mean absolute log-ratio of that step, in nats per token.

    Raises:
      DivergedError: the ratios are not 1.
    """
    tolerance = _tolerance(run.config)
    if not gap <= tolerance:
        raise DivergedError(
            f"iteration {iteration}: the first step's log-ratios are {gap:.3g} a token and not 0 (tolerance "
            f"{tolerance:.1g}): scoring and the update disagree, a bug in one of them; check "
            "config.rl.micro_tokens and config.policy.remat"
        )


def _tolerance(config: Config) -> float:
    """Return the difference in nats per token that two programs may have on the same weights, on this platform."""
    return precision.tolerance(config.policy.matmul_precision, config.policy.compute_dtype, jax.default_backend())
