"""A quarter of the pages with a clean version is hidden. Of each page `PIXELS` pixels are asked for, drawn at random: a
submission then has 4 MB, and not a row for each of some million pixels."""

import numpy as np
import pandas as pd

from environments.tasks.folders import archives, splits

PIXELS = 4000


def prepare(raw, public, private, seed):
    rng = np.random.default_rng(seed)
    with archives.open_archive(raw, "denoising-dirty-documents.zip") as archive:
        table = pd.DataFrame({"file": archive.names("train/*.png")})
        table["dirty"] = [archive.image(name, mode="L") for name in table["file"]]
        stems = [name.rpartition("/")[2] for name in table.pop("file")]
        table["clean"] = [archive.image(f"train_cleaned/{stem}", mode="L") for stem in stems]
    for stem, dirty, clean in zip(stems, table["dirty"], table["clean"], strict=True):
        if dirty.shape != clean.shape:
            raise archives.ArchiveError(f"train/{stem} has {dirty.shape} pixels, its clean version {clean.shape}")
    train, test = splits.split(table, 0.25, seed)
    splits.number(train, test, "page")
    for name, part, column in (("train", train, "dirty"), ("train_cleaned", train, "clean"), ("test", test, "dirty")):
        np.savez(
            public / f"{name}.npz",
            **{str(page): pixels for page, pixels in zip(part["page"], part[column], strict=True)},
        )
    rows = []
    for page, clean in zip(test["page"], test["clean"], strict=True):
        for place in np.sort(rng.permutation(clean.size)[:PIXELS]):
            row, column = divmod(int(place), clean.shape[1])
            rows.append((f"{page}_{row + 1}_{column + 1}", clean[row, column] / 255, page))
    answers = pd.DataFrame(rows, columns=["id", "value", "page"])
    answers["half"] = splits.halves(answers.pop("page"), seed)
    answers.to_csv(private / "answers.csv", index=False)
    splits.sample(answers["id"], {"value": 1}, public, "id")
