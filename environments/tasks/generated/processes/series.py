"""Time series of many units (meters, gauges, shops) to forecast: level + season + trend + autoregressive noise.

    time   ...  -24 .. -1  origin | +1 .. +horizon
    public   histories and targets | nothing
    hidden   histories             | targets, `ahead` steps after the origin

The whole task has one forecast origin. Every public number was measured at the origin or before; every hidden value
comes after. Each row is a unit of its own, so no row holds the past or the future of another.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from environments.tasks.generated.dataset import Dataset

HISTORY = 24
"""Number of values before the forecast in a row."""
ORIGIN = 240
"""Time of the forecast origin, in steps. Public targets are spread over the time before it."""
_BURN_IN = 40
"""Steps after which the autoregressive noise is independent of its start."""


@dataclasses.dataclass(frozen=True)
class Series:
    """One process. Amplitudes are in units of the level's scale, which is 10."""

    rows: int
    hidden: int
    horizon: int
    """Maximum number of steps from a row's last known value to its forecast."""
    period: int = 12
    season: float = 1.0
    trend: float = 0.0
    """Growth from time 0 to the origin."""
    spread: float = 0.3
    """Standard deviation of the units' levels, and of the logarithm of their seasons' amplitudes."""
    walk: float = 0.0
    """Step size of each unit's random walk, which starts at time 0."""
    memory: float = 0.5
    """Autoregression coefficient of the noise."""
    noise: float = 0.3
    bend: float = 0.0
    """Strength of a threshold effect: values fall after a high value and rise after a low one."""
    amounts: bool = False
    """Whether to take the exponential: positive values with a long tail."""

    def data(self, rng: np.random.Generator) -> Dataset:
        """Draw the data: the target's time, the steps ahead, then the history, oldest first."""
        units = self.rows + self.hidden
        ahead = rng.integers(1, self.horizon + 1, units)
        target_time = np.full(units, ORIGIN) + ahead
        target_time[: self.rows] = np.sort(rng.integers(HISTORY + self.horizon, ORIGIN + 1, self.rows))
        time = (target_time - ahead - HISTORY + 1)[:, None] + np.arange(HISTORY + self.horizon)  # [units, steps]
        angle = 2 * np.pi * time / self.period
        phase, second = rng.uniform(0, 2 * np.pi, 2)
        amplitude = self.season * np.exp(self.spread * rng.normal(size=(units, 1)))
        level = rng.normal(size=(units, 1)) * np.sqrt(self.spread**2 + self.walk**2 * time[:, :1])
        values = level + amplitude * (np.sin(angle + phase) + 0.6 * np.sin(2 * angle + second))
        values += self.trend * time / ORIGIN + np.cumsum(self.walk * rng.normal(size=time.shape), axis=1)
        values += self._noise(time.shape, rng)
        values = np.exp(values + 2.0) if self.amounts else 10.0 * values + 50.0
        targets = values[np.arange(units), HISTORY - 1 + ahead]
        inputs = np.column_stack([target_time, ahead, values[:, :HISTORY]])
        return Dataset(inputs, targets, self.rows, period=self.period, horizon=self.horizon)

    def _noise(self, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:  # [units, steps]
        units, steps = shape
        state, noise = np.zeros(units), np.empty((units, _BURN_IN + steps))
        for step in range(_BURN_IN + steps):
            state = self.memory * state + self.noise * rng.normal(size=units) - self.bend * np.tanh(3 * state)
            noise[:, step] = state
        return noise[:, _BURN_IN:]
