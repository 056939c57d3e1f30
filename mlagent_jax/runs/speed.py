"""Speed of training: tokens and operations a second, and the share of what the devices could do."""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax

from mlagent_jax.models import flops
from mlagent_jax.models.config import ModelConfig
from mlagent_jax.parallelism.slices import peak_flops


class Speed:
    """Rates of a stage's steps.

    Args:
      model: Shape of the policy.
      adapters: Whether adapters are trained, and the policy's weights are frozen.
    """

    def __init__(self, model: ModelConfig, adapters: bool) -> None:
        self._model, self._passes = model, flops.TRAINING_ADAPTERS if adapters else flops.TRAINING
        device = jax.devices()[0]
        self._peak = peak_flops(device.device_kind) * jax.device_count()
        self._last = time.monotonic()

    def sft(self, tokens: float, pairs: float, predicted: float) -> dict[str, float]:
        """Return the rates of a step of sft, which took the time since the last call; arguments as `flops.forward`."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return {"tokens_per_second": tokens / seconds} | self._rates(
            self._passes * flops.forward(self._model, tokens, pairs, predicted), seconds
        )

    def rl(self, groups: Sequence[tuple[int, Sequence[int]]], epochs: int, seconds: float) -> dict[str, float]:
        """Return the rates of one update of rl: two scorings, by the policy and by its reference, and the epochs.

        Args:
          groups: (tokens of the prompt, tokens of each action) of each state; a prompt is needed once.
          epochs: Number of passes over the batch.
          seconds: Duration of the update.
        """
        tokens = sum(prompt + sum(actions) for prompt, actions in groups)
        pairs = sum(p * (p + 1) / 2 + sum(a * p + a * (a + 1) / 2 for a in actions) for p, actions in groups)
        one = flops.forward(self._model, tokens, pairs, sum(sum(actions) for _, actions in groups))
        return self._rates((2 + self._passes * epochs) * one, seconds)

    def _rates(self, operations: float, seconds: float) -> dict[str, float]:
        """Return TFLOP/s, and the utilisation where the devices' peak is known."""
        rate = operations / seconds
        return {"model_tflops": rate / 1e12} | ({"mfu": rate / self._peak} if self._peak else {})
