"""Read-only: inputs of a table with columns of several types; `roles` in about.json says which column is what."""

import csv
import datetime
import json
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer


def inputs(fill=0, categories="skip", dates=False, words=200, letters=None, pairs=False, tfidf=False):
    """Inputs of the training rows and of the rows to predict, `[rows, columns]`.

    fill: what stands for a missing number: a number, "mean", "median", or "flag" (median, and a column that says so).
    categories: "skip" them, "codes" (a number each), "onehot" (a column for each of the 30 commonest), or "counts" (how
        often the category occurs).
    dates: add year, month, weekday and day number of dates.
    words: columns at most from the words of texts, the commonest first; 0 skips texts.
    letters, pairs, tfidf: count pieces of up to so many letters; count pairs of words too; weight rare words more.
    """
    roles = json.loads(Path("data/about.json").read_text())["roles"]
    tables = [read(f"data/{name}.csv") for name in ("train", "test")]
    return encode(*tables, roles, fill, categories, dates, words, letters, pairs, tfidf)


def read(path):
    """Cells of a CSV file by column."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, zip(*rows, strict=True), strict=True))


def encode(
    train, test, roles, fill=0, categories="skip", dates=False, words=200, letters=None, pairs=False, tfidf=False
):
    """The same from tables of cells by column."""
    rows = [len(next(iter(table.values()))) for table in (train, test)]
    found = [[np.zeros((count, 0))] for count in rows]
    for name, role in roles.items():
        cells = train[name], test[name]
        if role == "number":
            made = _numbers(*cells, fill)
        elif role == "category" and categories != "skip":
            made = _categories(*cells, categories)
        elif role == "date" and dates:
            made = tuple(np.array([_date(cell) for cell in part]) for part in cells)
        elif role == "text" and words:
            made = _texts(*cells, words, letters, pairs, tfidf)
        else:
            continue
        for part, columns in zip(found, made, strict=True):
            part.append(columns)
    x, z = (np.hstack(part) for part in found)
    if x.shape[1] == 0:  # Everything was skipped.
        x, z = (np.zeros((count, 1)) for count in rows)
    return x, z


def _numbers(train, test, fill):
    x, z = (np.array([float(cell) if cell else np.nan for cell in part]) for part in (train, test))
    value = {"mean": np.nanmean, "median": np.nanmedian, "flag": np.nanmedian}.get(fill)
    filler = fill if value is None else (0.0 if np.isnan(x).all() else value(x))
    made = [[np.where(np.isnan(part), filler, part)] for part in (x, z)]
    if fill == "flag" and np.isnan(x).any():
        for columns, part in zip(made, (x, z), strict=True):
            columns.append(np.isnan(part).astype(float))
    return tuple(np.stack(columns, axis=1) for columns in made)


def _categories(train, test, how):
    counts = Counter(train)
    names = [name for name, _ in counts.most_common()]
    if how == "counts":
        return tuple(np.array([[float(counts[cell])] for cell in part]) for part in (train, test))
    if how == "codes":
        code = {name: place for place, name in enumerate(sorted(names))}
        return tuple(np.array([[float(code.get(cell, -1))] for cell in part]) for part in (train, test))
    return tuple(np.array([[float(cell == name) for name in names[:30]] for cell in part]) for part in (train, test))


def _date(cell):
    if not cell:
        return [0.0, 0.0, 0.0, 0.0]
    day = datetime.date.fromisoformat(cell[:10])
    return [float(day.year), float(day.month), float(day.weekday()), float(day.toordinal())]


def _texts(train, test, words, letters, pairs, tfidf):
    options = {"analyzer": "char_wb", "ngram_range": (2, letters)} if letters else {"ngram_range": (1, 1 + pairs)}
    vectorizer = (TfidfVectorizer if tfidf else CountVectorizer)(max_features=words, **options)
    try:
        x = vectorizer.fit_transform(train)
    except ValueError:  # No words at all.
        return tuple(np.zeros((len(part), 0)) for part in (train, test))
    return x.toarray().astype(float), vectorizer.transform(test).toarray().astype(float)
