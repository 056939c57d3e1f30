"""A fifth of the labelled sentences is hidden."""

from environments.tasks.folders import archives, splits

AUTHORS = ["EAP", "HPL", "MWS"]


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "spooky-author-identification.zip") as archive:
        table = archive.table("train.csv", ["id", "text", "author"], keep_default_na=False)
    if set(table["author"]) != set(AUTHORS):
        raise archives.ArchiveError(
            f"train.csv: authors are {', '.join(sorted(set(table['author']))[:5])}, expected {', '.join(AUTHORS)}"
        )
    train, test = splits.split(table, 0.2, seed, strata=table["author"])
    splits.write(train, test, ["author"], public, private, "id")
    splits.sample(test["id"], dict.fromkeys(AUTHORS, 0.3333), public, "id")
