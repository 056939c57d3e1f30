"""Text tasks: Python's own texts (help topics, docstrings, character names), disguised, and invented essays."""

from __future__ import annotations

import importlib
import inspect
import pydoc_data.topics
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from environments.tasks.generated.dataset import Dataset
from environments.tasks.generated.processes.texts import Essays, disguise_texts
from environments.tasks.generated.recipe import Recipe, embedded
from environments.tasks.generated.scripts import Script

_DOCSTRING_MODULES = (
    ("decimal", "fractions", "statistics", "random", "math", "cmath", "datetime", "calendar", "colorsys", "numbers"),
    ("os", "shutil", "pathlib", "tarfile", "zipfile", "tempfile", "glob", "gzip", "csv"),
    ("email.message", "http.client", "socket", "ssl", "smtplib", "imaplib", "ftplib", "urllib.request", "socketserver"),
)
"""Modules of the standard library, one group per class."""
_CATEGORIES = ("Lu", "Ll", "So", "Sm", "Mn", "No")


def _texts(classes: Sequence[Sequence[str]], train: int, hidden: int, rng: np.random.Generator, keep: float) -> Dataset:
    """Return disguised texts, each used once, as evenly over the classes as their numbers allow."""
    each = -(-(train + hidden) // len(classes))
    pool = [
        (text, label)
        for label, texts in enumerate(classes)
        for text in rng.permutation(sorted(set(texts)))[:each].tolist()
    ]
    order = rng.permutation(len(pool))
    disguised = disguise_texts([pool[index][0] for index in order], rng, keep)
    return Dataset(disguised, np.array([pool[index][1] for index in order]), train)


def _docstrings(rng: np.random.Generator) -> Dataset:
    return _texts([_docstrings_of(names) for names in _DOCSTRING_MODULES], 250, 600, rng, keep=0.85)


def _docstrings_of(names: Sequence[str]) -> list[str]:
    """Return the first 50 words of the docstrings of functions, classes and methods of modules."""
    docstrings = []
    for name in names:
        module = importlib.import_module(name)
        members = [value for _, value in inspect.getmembers(module)]
        own = [value for value in members if inspect.isclass(value) and value.__module__ == module.__name__]
        members += [value for owner in own for _, value in inspect.getmembers(owner)]
        texts = [value.__doc__ for value in members if callable(value) and isinstance(value.__doc__, str)]
        docstrings += [" ".join(text.split()[:50]) for text in texts if len(text.split()) >= 6]
    return docstrings


def _help_topics(rng: np.random.Generator) -> Dataset:
    """Draw 25-word pieces of Python's help topics, by group of topics."""
    groups = (
        ("specialnames", "class", "customization", "types"),
        ("formatstrings", "strings", "typesseq", "numbers"),
        ("compound", "import", "function", "try"),
        ("debugger",),
    )
    pieces = []
    for group in groups:
        words = " ".join(pydoc_data.topics.topics[topic] for topic in group).split()
        pieces.append([" ".join(words[start : start + 25]) for start in range(0, len(words) - 25, 25)])
    return _texts(pieces, 250, 600, rng, keep=0.85)


def _character_names(rng: np.random.Generator) -> Dataset:
    """Draw names of Unicode characters, by general category."""
    classes: dict[str, list[str]] = {category: [] for category in _CATEGORIES}
    for code in range(0x2FFFF):
        category = unicodedata.category(chr(code))
        if category in classes:
            classes[category].append(re.sub(r"[^A-Z ]", " ", unicodedata.name(chr(code), "")))
    return _texts(list(classes.values()), 250, 800, rng, keep=0.6)


def recipes() -> tuple[Recipe, ...]:
    """Return all tasks of this kind."""
    disguise = "; each used once, some words left out, letters exchanged by the seed."
    return (
        embedded(
            "docstrings", "text", "train", "accuracy",
            "Tell what a docstring is about: numbers, files or the network.",
            "Docstrings of Python's standard library" + disguise, _docstrings,
            Script("KNeighborsClassifier(n_neighbors=1)", load="words=20"),
            Script("LogisticRegression(C=10)", load="words=600, letters=4, tfidf=True"),
        ),
        embedded(
            "help-topics", "text", "train", "log_loss",
            "Tell from which of four groups of manual pages a passage is.",
            "Python's help topics (pydoc_data), in pieces of 25 words" + disguise, _help_topics,
            Script("LogisticRegression(C=0.01)", load="words=20"),
            Script("LogisticRegression(C=10)", load="words=600, tfidf=True"),
        ),
        embedded(
            "character-names", "text", "held_out", "map_at_3",
            "Tell the category of a character by its name; three guesses, the likeliest first.",
            "Names in Python's Unicode database" + disguise, _character_names,
            Script("DecisionTreeClassifier(max_depth=3)", load="words=100"),
            Script("LogisticRegression(C=10)", load="words=600, letters=4, tfidf=True"),
        ),
        embedded(
            "essays", "text", "held_out", "qwk",
            "Grade essays from 0 to 4 by the words they use.",
            "Generated by the seed (Essays, environments/tasks/generated/processes/texts.py).", Essays(300, 1600).data,
            Script("DecisionTreeRegressor()", load="words=50"),
            Script("SVR(C=3)", load="words=100"),
        ),
    )  # fmt: skip
