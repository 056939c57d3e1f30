"""Rent = 12 area^0.9 x rooms x floor x noise. A real task would read its data from `raw`."""

import numpy as np
import pandas as pd


def prepare(raw, public, private, seed):
    rng = np.random.default_rng(seed)
    flats = pd.DataFrame({"id": np.arange(900)})
    flats["area"] = rng.lognormal(4.2, 0.4, len(flats)).round(1)
    flats["rooms"] = np.maximum(1, (flats["area"] / 25 + rng.normal(0, 0.7, len(flats))).round()).astype(int)
    flats["floor"] = rng.integers(0, 9, len(flats))
    factor = 1.02 ** flats["floor"] * 1.03 ** flats["rooms"] * np.exp(rng.normal(0, 0.15, len(flats)))
    flats["rent"] = (12 * flats["area"] ** 0.9 * factor).round(2)
    train, test = flats[:300], flats[300:]
    train.to_csv(public / "train.csv", index=False)
    test.drop(columns="rent").to_csv(public / "test.csv", index=False)
    test[["id", "rent"]].to_csv(private / "answers.csv", index=False)
