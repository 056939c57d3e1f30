"""A fifth of the essays is hidden."""

from environments.tasks.folders import archives, splits

TARGETS = ["cohesion", "syntax", "vocabulary", "phraseology", "grammar", "conventions"]


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "feedback-prize-english-language-learning.zip") as archive:
        table = archive.table("train.csv", ["text_id", "full_text"], numbers=TARGETS, keep_default_na=False)
    splits.write(*splits.split(table, 0.2, seed), TARGETS, public, private, "text_id")
