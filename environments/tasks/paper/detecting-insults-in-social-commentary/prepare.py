"""A quarter of the labelled comments is hidden; equal comments are on one side, and in one half."""

from environments.tasks.folders import archives, splits


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "detecting-insults-in-social-commentary.zip") as archive:
        table = archive.table("train.csv", ["Date", "Comment"], numbers=["Insult"], keep_default_na=False)
    train, test = splits.split(table, 0.25, seed, groups=table["Comment"])
    splits.write(train, test, ["Insult"], public, private, "id", splits.halves(test["Comment"], seed))
