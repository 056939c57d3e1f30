"""Split of labelled public data into public and hidden rows, for a task's prepare.py, from the task's seed alone.

    train, test = splits.split(table, 0.2, seed)
    splits.write(train, test, ["score"], public, private, id_column="essay_id")

Rows are shuffled and, if they have an id, renumbered: neither order nor number reveals anything about a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from environments.tasks.grading.halves import report_half
from environments.tasks.grading.own import HALF


def split(
    table: pd.DataFrame,
    share: float,
    seed: int,
    groups: Sequence[object] | None = None,
    strata: Sequence[object] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return public and hidden rows of `table`, both in random order.

    Args:
      table: all rows.
      share: share of hidden rows.
      seed: the task's seed.
      groups: group of each row, `[rows]`; rows of one group stay together.
      strata: stratum of each row, `[rows]`; `share` of every stratum is hidden (not with `groups`).
    """
    rng = np.random.default_rng([seed, 0x5917])
    if groups is not None:
        codes = pd.factorize(pd.Series(list(groups)))[0]
        drawn = rng.permutation(codes.max() + 1)
        hidden = np.isin(codes, drawn[: max(1, round(share * len(drawn)))])
    else:
        codes = np.zeros(len(table), int) if strata is None else pd.factorize(pd.Series(list(strata)))[0]
        hidden = np.zeros(len(table), bool)
        for code in range(codes.max() + 1):
            rows = rng.permutation(np.flatnonzero(codes == code))
            hidden[rows[: round(share * len(rows))]] = True
    order = rng.permutation(len(table))
    return tuple(table.iloc[order[mask[order]]].reset_index(drop=True) for mask in (~hidden, hidden))


def number(train: pd.DataFrame, test: pd.DataFrame, id_column: str) -> None:
    """Give all rows new ids: 0, 1 ... for the public rows, continuing with the hidden ones."""
    for first, part in ((0, train), (len(train), test)):
        if id_column in part:
            part[id_column] = np.arange(first, first + len(part))
        else:
            part.insert(0, id_column, np.arange(first, first + len(part)))


def halves(groups: Sequence[object], seed: int) -> np.ndarray:
    """Return `reward` or `report` for each row, the same for all rows of a group. [rows]"""
    codes = pd.factorize(pd.Series(list(groups)))[0]
    return np.where(report_half(codes.max() + 1, seed)[codes], "report", "reward")


def write(
    train: pd.DataFrame,
    test: pd.DataFrame,
    targets: Sequence[str],
    public: Path,
    private: Path,
    id_column: str,
    half: Sequence[str] | None = None,
    renumber: bool = True,
) -> None:
    """Write train.csv, test.csv (without `targets`), sample_submission.csv and answers.csv.

    Args:
      train: public rows.
      test: hidden rows.
      targets: columns to predict.
      public: folder of public data.
      private: folder of hidden data.
      id_column: name of the id column.
      half: half of each hidden row, if some rows belong together (see `halves`).
      renumber: whether to give new ids; otherwise the column `id_column` must exist and stays.
    """
    if renumber:
        number(train, test, id_column)
    train.to_csv(public / "train.csv", index=False)
    test.drop(columns=list(targets)).to_csv(public / "test.csv", index=False)
    constant = {name: _typical(train[name]) for name in targets}
    sample(test[id_column], constant, public, id_column)
    answers = test[[id_column, *targets]]
    if half is not None:
        answers = answers.assign(**{HALF: half})
    answers.to_csv(private / "answers.csv", index=False)


def sample(ids: Sequence[object], constant: dict[str, object], public: Path, id_column: str) -> None:
    """Write sample_submission.csv: the same prediction for every id."""
    table = pd.DataFrame({id_column: list(ids)}).assign(**constant)
    table.to_csv(public / "sample_submission.csv", index=False)


def _typical(column: pd.Series) -> object:
    """Return the most frequent value of a class or a grade, the mean of other numbers."""
    whole = not pd.api.types.is_float_dtype(column)
    return column.mode().iloc[0] if whole else round(float(column.mean()), 4)
