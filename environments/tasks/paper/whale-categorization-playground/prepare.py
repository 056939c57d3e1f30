"""A fifth of the labelled images is hidden; a whale that is on hidden images alone is a new one."""

import numpy as np

from environments.tasks.folders import archives, splits


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "whale-categorization-playground.zip") as archive:
        train, test = splits.split(archive.table("train.csv", ["Image", "Id"]), 0.2, seed)
        for name, part in (("train", train), ("test", test)):
            files = [f"train/{image}" for image in part["Image"]]
            np.save(public / f"{name}_images.npy", archive.images(files, (128, 64), "L"))
    test["Id"] = test["Id"].where(test["Id"].isin(set(train["Id"])), "new_whale")
    splits.write(train, test, ["Id"], public, private, "Image")
