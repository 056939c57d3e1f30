"""Data sets of tensorflow-datasets as a source for a task's prepare.py, read without TensorFlow.

    from environments.tasks.folders import tfds_source
    train = tfds_source.read("cifar10", "train[:5000]")     # {"image": [5000, 32, 32, 3], "label": [5000], "id": ...}

Reading needs data in the ArrayRecord format, which tensorflow-datasets reads through `as_data_source` with NumPy
alone. Writing a data set's images needs TensorFlow once, on any machine; its folder can then be copied.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import numpy as np

from environments.tasks.task import TaskError

INSTALL = "pip install '.[tfds]'"
"""Command that installs what reading needs; the trainer's extras lack the image decoder."""


def read(name: str, split: str = "train", data_dir: str | os.PathLike[str] | None = None) -> dict[str, np.ndarray]:
    """Read one split as an array per feature, in the order on disk.

    Args:
      name: name in tensorflow-datasets' notation: `cifar10`, `cifar10:3.0.2`, `builder/config`.
      split: `train`, or a slice of it such as `train[:5000]`.
      data_dir: folder of the prepared data set; default TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
      `[rows, ...]` by feature; texts, and features whose shape differs from row to row, as objects `[rows]`.

    Raises:
      TaskError: tensorflow-datasets is not installed, or the data set, its split or its format is missing; the message
        has the command that provides it.
    """
    tfds = _library()
    folder = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    make = (
        "where TensorFlow is installed, run `python -c \"import tensorflow_datasets as tfds; tfds.builder('"
        f"{name}', data_dir='{folder}', file_format='array_record').download_and_prepare()\"` and copy the folder here"
    )
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise TaskError(
            f"{folder} holds no prepared data set {name!r}: set TFDS_DATA_DIR to its folder, or, {make}"
        ) from (error)
    splits = builder.info.splits
    if split.partition("[")[0] not in splits:
        raise TaskError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    try:
        rows = builder.as_data_source(split=split)
        return _columns([rows[place] for place in range(len(rows))])
    except NotImplementedError as error:
        file_format = builder.info.file_format.value if builder.info.file_format else "another format"
        raise TaskError(f"{name} in {folder} is {file_format}, which only TensorFlow reads: {make}") from error
    except ImportError as error:
        raise TaskError(f"{name} cannot be decoded ({error}): {INSTALL}") from error


def _library() -> ModuleType:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise TaskError(
            f"a task reads its data through tensorflow-datasets, which is not installed: {INSTALL}"
        ) from error
    return tensorflow_datasets


def _columns(rows: list[dict[str, object]]) -> dict[str, np.ndarray]:
    if not rows:
        raise TaskError("the split holds no row")
    return {feature: _stack([row[feature] for row in rows]) for feature in rows[0]}


def _stack(values: list[object]) -> np.ndarray:
    if not isinstance(values[0], bytes) and len({np.shape(value) for value in values}) == 1:
        return np.stack(values)
    column = np.empty(len(values), dtype=object)
    column[:] = [value.decode() if isinstance(value, bytes) else value for value in values]
    return column
