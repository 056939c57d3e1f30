"""A fifth of the labelled comments is hidden, of each number of labels alike."""

from environments.tasks.folders import archives, splits

TARGETS = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "jigsaw-toxic-comment-classification-challenge.zip") as archive:
        table = archive.table("train.csv", ["id", "comment_text"], numbers=TARGETS, keep_default_na=False)
    parts = splits.split(table, 0.2, seed, strata=table["threat"] * 10 + table[TARGETS].sum(axis=1))
    splits.write(*parts, TARGETS, public, private, "id")
