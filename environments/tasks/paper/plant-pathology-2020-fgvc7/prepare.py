"""A quarter of the labelled images is hidden; images are scaled to 144 by 96."""

import numpy as np

from environments.tasks.folders import archives, splits

TARGETS = ["healthy", "multiple_diseases", "rust", "scab"]


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "plant-pathology-2020-fgvc7.zip") as archive:
        labels = archive.table("train.csv", ["image_id"], numbers=TARGETS)
        parts = splits.split(labels, 0.25, seed, strata=labels[TARGETS].to_numpy().argmax(axis=1))
        for name, part in zip(("train", "test"), parts, strict=True):
            files = [f"images/{image}.jpg" for image in part["image_id"]]
            np.save(public / f"{name}_images.npy", archive.images(files, (144, 96)))
        splits.write(*parts, TARGETS, public, private, "image_id")
