"""A fifth of the labelled images, whose label is in the name of their file, is hidden."""

import numpy as np
import pandas as pd

from environments.tasks.folders import archives, splits

SIDE = 64


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "dogs-vs-cats-redux-kernels-edition.zip") as archive:
        files = [*archive.names("train/cat.*.jpg"), *archive.names("train/dog.*.jpg")]
        table = pd.DataFrame({"file": files, "label": [int("/dog." in file) for file in files]})
        parts = splits.split(table, 0.2, seed, strata=table["label"])
        for name, part in zip(("train", "test"), parts, strict=True):
            np.save(public / f"{name}_images.npy", archive.images(part.pop("file"), (SIDE, SIDE)))
        splits.write(*parts, ["label"], public, private, "id")
