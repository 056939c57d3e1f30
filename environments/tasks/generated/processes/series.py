"""Time series: level + season + trend + autoregressive noise, cut into windows of history before the value to predict.

Hidden rows are later than public ones, as they are in practice.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from environments.tasks.generated.dataset import Dataset

HISTORY = 24
"""Values before the one to predict that a row holds."""


@dataclasses.dataclass(frozen=True)
class Series:
    """One process. Amplitudes are in units of the level's scale, which is 10."""

    rows: int
    hidden: int
    period: int = 12
    season: float = 1.0
    trend: float = 0.0
    """Growth over the public rows."""
    walk: float = 0.0
    """Step of a random walk under it all."""
    memory: float = 0.5
    """Autoregression of the noise."""
    noise: float = 0.3
    bend: float = 0.0
    """Strength of a threshold: after a high value falls, after a low one rises."""
    amounts: bool = False
    """The exponential of it: positive, with a long tail."""

    def data(self, rng: np.random.Generator) -> Dataset:
        """Draw the data: column 0 is the time, then the history, oldest first."""
        length = HISTORY + self.rows + self.hidden
        time = np.arange(length)
        angle = 2 * np.pi * time / self.period
        phase, second = rng.uniform(0, 2 * np.pi, 2)
        base = self.season * (np.sin(angle + phase) + 0.6 * np.sin(2 * angle + second))
        base = base + self.trend * time / self.rows + np.cumsum(self.walk * rng.normal(size=length))
        shocks, state = self.noise * rng.normal(size=length), 0.0
        values = np.empty(length)
        for index in range(length):
            state = self.memory * state + shocks[index] - self.bend * np.tanh(3 * state)
            values[index] = base[index] + state
        values = np.exp(values + 2.0) if self.amounts else 10.0 * values + 50.0
        windows = np.lib.stride_tricks.sliding_window_view(values[:-1], HISTORY)
        inputs = np.column_stack([time[HISTORY:], windows])
        return Dataset(inputs, values[HISTORY:], self.rows, period=self.period)
