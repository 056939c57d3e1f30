"""A sandbox and a folder of package-like tables."""

import contextlib

import numpy as np
import pandas as pd
import pytest

from environments.sandbox import open_sandbox


@pytest.fixture(scope="session")
def sandbox():
    with contextlib.closing(open_sandbox("auto")) as opened:
        yield opened


@pytest.fixture(scope="session")
def houses():
    """A table with a number and a class to predict."""
    rng = np.random.default_rng(0)
    size, kind = rng.normal(50, 10, 300).round(1), rng.choice(["oak", "pine", "fir"], 300)
    price = (3 * size + 40 * (kind == "oak") + rng.normal(0, 5, 300)).round(1)
    old = np.where(size + 8 * (kind == "fir") + rng.normal(0, 4, 300) > 52, "old", "new")
    return pd.DataFrame({"size": size, "kind": kind, "price": price, "age": old})
