"""Batches of random log-probs with awkward masks, and means by plain loops."""

import numpy as np
import pytest

SHAPE = (6, 7)


@pytest.fixture
def batch():
    """Log-probs, advantages and a mask with an empty row, a row of one token and a hole; garbage outside the mask."""
    rng = np.random.default_rng(0)
    mask = rng.random(SHAPE) < 0.6
    mask[0] = False
    mask[1] = np.arange(SHAPE[1]) == 3
    arrays = {
        "log_probs": -rng.exponential(size=SHAPE),
        "old_log_probs": -rng.exponential(size=SHAPE),
        "behaviour_log_probs": -rng.exponential(size=SHAPE),
        "advantages": rng.normal(size=SHAPE),
    }
    return {name: np.where(mask, array, np.nan) for name, array in arrays.items()} | {"mask": mask}


def mean_by_loop(token, mask, aggregation):
    """Mean of token(i, t) over the mask, as each aggregation is defined."""
    rows = [[token(i, t) for t in range(SHAPE[1]) if mask[i, t]] for i in range(SHAPE[0])]
    flat = [x for row in rows for x in row]
    if aggregation == "token":
        return sum(flat) / len(flat)
    counted = [row for row in rows if row]
    if aggregation == "constant":
        return sum(flat) / SHAPE[1] / len(counted)
    return sum(sum(row) / len(row) for row in counted) / len(counted)
