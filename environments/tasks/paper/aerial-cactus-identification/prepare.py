"""A fifth of the labelled images is hidden."""

import numpy as np

from environments.tasks.folders import archives, splits


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "aerial-cactus-identification.zip") as archive:
        labels = archive.table("train.csv", ["id"], numbers=["has_cactus"])
        parts = splits.split(labels, 0.2, seed, strata=labels["has_cactus"])
        for name, part in zip(("train", "test"), parts, strict=True):
            files = [f"train/{file}" for file in part["id"]]
            np.save(public / f"{name}_images.npy", archive.images(files, (32, 32)))
        splits.write(*parts, ["has_cactus"], public, private, "id")
