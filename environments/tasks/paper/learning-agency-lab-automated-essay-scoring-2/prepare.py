"""A fifth of the essays is hidden."""

from environments.tasks.folders import archives, splits


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "learning-agency-lab-automated-essay-scoring-2.zip") as archive:
        table = archive.table("train.csv", ["essay_id", "full_text"], numbers=["score"], keep_default_na=False)
    splits.write(*splits.split(table, 0.2, seed, strata=table["score"]), ["score"], public, private, "essay_id")
