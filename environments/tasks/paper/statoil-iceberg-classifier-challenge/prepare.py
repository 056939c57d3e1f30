"""A quarter of the labelled images is hidden."""

import numpy as np
import pandas as pd

from environments.tasks.folders import archives, splits

SIDE = 75


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "statoil-iceberg-classifier-challenge.zip") as archive:
        found = archive.json("train.json")
    try:
        table = pd.DataFrame([{name: row[name] for name in ("id", "inc_angle", "is_iceberg")} for row in found])
        bands = np.array([[row["band_1"], row["band_2"]] for row in found], np.float32)
        bands = bands.reshape(len(found), 2, SIDE, SIDE).transpose(0, 2, 3, 1)
    except (KeyError, TypeError, ValueError) as error:
        raise archives.ArchiveError(
            f"train.json: {error}; expected id, band_1 and band_2 of 5625 numbers, inc_angle, is_iceberg"
        ) from error
    table["inc_angle"] = pd.to_numeric(table["inc_angle"], errors="coerce")  # Some are "na".
    table["row"] = np.arange(len(table))
    parts = splits.split(table, 0.25, seed, strata=table["is_iceberg"])
    for name, part in zip(("train", "test"), parts, strict=True):
        np.save(public / f"{name}_bands.npy", bands[part.pop("row")])
    splits.write(*parts, ["is_iceberg"], public, private, "id")
