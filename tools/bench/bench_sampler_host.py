"""Seconds that the sampler's host half takes for a batch of long prompts, with a device that answers at once.

    python tools/bench/bench_sampler_host.py [--prompts=64] [--n=4] [--tokens=14000] [--completion=256] [--slots=64]

Everything of `TokenSampler.sample` runs but the programs: requests, placement, search for shared beginnings, arrays for
the device, and the reading of what comes back. Half of the prompts begin alike for a quarter of their tokens. Twice as
many prompts should take twice the seconds: both are measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

PROMPTS = flags.DEFINE_integer("prompts", 64, "Distinct prompts.", lower_bound=1)
N = flags.DEFINE_integer("n", 4, "Samples a prompt.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 14_000, "Tokens a prompt.", lower_bound=1)
COMPLETION = flags.DEFINE_integer("completion", 256, "Tokens a completion.", lower_bound=1)
SLOTS = flags.DEFINE_integer("slots", 64, "Sequences at once.", lower_bound=1)


class InstantDevice:
    """Takes the place of `FirstRuns`: keeps counts as the programs would, and computes nothing."""

    def __init__(self, slots: int) -> None:
        self.count = 0
        self.calls = 0
        self._counts, self._limits = np.zeros(slots, np.int32), np.zeros(slots, np.int32)

    def __call__(self, key: tuple[object, ...], program: Any, *args: Any) -> Any:
        """A state that is none, and after a decode what the host would read."""
        from mlagent_jax.sampling import engine

        self.calls += 1
        if key[0] == "start":
            starts = args[-1]
            self._counts = np.where(starts.starting, 1, self._counts)
            self._limits = np.where(starts.starting, starts.limits, self._limits)
        if key[0] != "decode":
            return None
        steps = args[1].steps_per_call
        self._counts = np.minimum(self._counts + steps, self._limits)
        made = np.zeros((len(self._counts), steps + 1))
        active = self._counts < self._limits
        return None, engine.Look(
            self._counts, active, np.zeros_like(active), made.astype(np.int32), made.astype(np.float32)
        )


def seconds(prompts: int) -> tuple[float, int]:
    """(of the host for so many prompts, programs that it ran)."""
    import jax

    from mlagent_jax import models
    from mlagent_jax.sampling import SamplerConfig, TokenSampler

    graph, params = models.create(models.ModelConfig(1000, 8, 1, 2, 2, 4, 8), jax.random.key(0))
    rng = np.random.default_rng(0)
    asked = rng.integers(0, 1000, (prompts, TOKENS.value))
    asked[::2, : TOKENS.value // 4] = asked[0, : TOKENS.value // 4]
    sampler = TokenSampler(graph, SamplerConfig(max_new_tokens=COMPLETION.value, slots=SLOTS.value))
    sampler._run = device = InstantDevice(SLOTS.value)
    rows = asked.tolist()
    begin = time.perf_counter()
    made = sampler.sample(rows, range(prompts), N.value, params=params)
    taken = time.perf_counter() - begin
    assert sum(len(completion.token_ids) for completion in made) == prompts * N.value * COMPLETION.value
    return taken, device.calls


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    seconds(1)
    for prompts in (PROMPTS.value, 2 * PROMPTS.value):
        taken, calls = min(seconds(prompts) for _ in range(3))
        each = 1e3 * taken / (prompts * N.value)
        print(
            f"{prompts * N.value} samples of {TOKENS.value} tokens: {taken:.3f} s, {each:.2f} ms each, {calls} programs"
        )


if __name__ == "__main__":
    app.run(main)
