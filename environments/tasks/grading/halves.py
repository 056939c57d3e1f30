"""The two halves of a task's hidden rows: one gives the reward, the other is used once, for the report."""

from __future__ import annotations

import numpy as np

HALVES = ("reward", "report")


def report_half(rows: int, seed: int) -> np.ndarray:
    """Choose the report half: every second row of a random order, by the task's seed. [rows] bool"""
    half = np.zeros(rows, dtype=bool)
    half[np.random.default_rng([seed, 0x5EED]).permutation(rows)[::2]] = True
    return half
