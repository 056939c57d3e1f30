"""A fifth of the groups of passengers is hidden; groups are numbered anew, and stay together in the halves."""

import pandas as pd

from environments.tasks.folders import archives, splits

COLUMNS = ["PassengerId", "HomePlanet", "CryoSleep", "Cabin", "Age", "RoomService", "VRDeck", "Transported"]


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "spaceship-titanic.zip") as archive:
        table = archive.table("train.csv", COLUMNS)
    unknown = set(table["Transported"].astype(str)) - {"True", "False"}
    if unknown:
        raise archives.ArchiveError(f"train.csv: Transported holds {unknown.pop()[:20]!r}, expected True or False")
    train, test = splits.split(table, 0.2, seed, groups=table["PassengerId"].str.partition("_")[0])
    group = pd.concat([train, test])["PassengerId"].str.partition("_")
    names = [f"{code + 1:04}_{member}" for code, member in zip(pd.factorize(group[0])[0], group[2], strict=True)]
    train["PassengerId"], test["PassengerId"] = names[: len(train)], names[len(train) :]
    half = splits.halves(test["PassengerId"].str.partition("_")[0], seed)
    splits.write(train, test, ["Transported"], public, private, "PassengerId", half, renumber=False)
