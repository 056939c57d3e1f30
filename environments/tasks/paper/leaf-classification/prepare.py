"""A fifth of the labelled leaves, of each species alike, is hidden."""

import numpy as np

from environments.tasks.folders import archives, splits


def prepare(raw, public, private, seed):
    numbers = [f"{kind}{place}" for kind in ("margin", "shape", "texture") for place in range(1, 65)]
    with archives.open_archive(raw, "leaf-classification.zip") as archive:
        table = archive.table("train.csv", ["id", "species"], numbers=numbers)[["id", "species", *numbers]]
        parts = splits.split(table, 0.2, seed, strata=table["species"])
        for name, part in zip(("train", "test"), parts, strict=True):
            files = [f"images/{leaf}.jpg" for leaf in part["id"]]
            np.save(public / f"{name}_images.npy", archive.images(files, (64, 64), "L"))
    species = sorted(set(table["species"]))
    splits.write(*parts, ["species"], public, private, "id")
    splits.sample(parts[1]["id"], dict.fromkeys(species, round(1 / len(species), 6)), public, "id")
