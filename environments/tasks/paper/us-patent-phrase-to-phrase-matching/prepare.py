"""A fifth of the labelled pairs is hidden."""

from environments.tasks.folders import archives, splits


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "us-patent-phrase-to-phrase-matching.zip") as archive:
        columns = ["id", "anchor", "target", "context"]
        table = archive.table("train.csv", columns, numbers=["score"], keep_default_na=False)
    splits.write(*splits.split(table, 0.2, seed, strata=table["score"]), ["score"], public, private, "id")
