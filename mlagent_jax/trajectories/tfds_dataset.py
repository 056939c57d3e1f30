"""Recorded steps as a tensorflow-datasets dataset, read by index without TensorFlow.

    from mlagent_jax.trajectories import tfds_dataset
    builder = tfds_dataset.prepare("runs/collect/trajectories/collect", data_dir)
    steps = builder.as_data_source(split="train")      # steps[0]["action"], steps[0]["outcome"]["reward"]

The prepared dataset is in the ArrayRecord format: `tfds.builder_from_directory(FOLDER)` and Grain read it anywhere. A
missing number (a reward, a metric) is NaN, a missing text is empty, and numbers are float32.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from etils import epath

from mlagent_jax.trajectories import exchange, schema


class Trajectories(tfds.core.GeneratorBasedBuilder):
    """Recorded steps, in the order of their execution."""

    VERSION = tfds.core.Version(schema.VERSION)

    def __init__(self, *, source: str, **options: Any) -> None:
        """Create the builder.

        Args:
          source: Source for `exchange.read`.
          options: Options of every builder.
        """
        self._source = source
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({field.name: _feature(field.type) for field in schema.SCHEMA})
        return tfds.core.DatasetInfo(
            builder=self, description="Steps of machine-learning engineering", features=features, disable_shuffling=True
        )

    def _split_generators(self, manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        splits = dict.fromkeys(record.split for record in exchange.read(self._source))
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        records = (record for record in exchange.read(self._source) if record.split == split)
        for number, record in enumerate(records):
            row = schema.to_row(record.to_dict())
            yield number, {field.name: _example(row[field.name], field.type) for field in schema.SCHEMA}


def prepare(source: epath.PathLike, data_dir: epath.PathLike) -> Trajectories:
    """Write the dataset of `source` below `data_dir`, unless it exists, and return its builder."""
    builder = Trajectories(source=os.fspath(source), data_dir=os.fspath(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return builder


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        return tfds.features.FeaturesDict({field.name: _feature(field.type) for field in kind})
    if pa.types.is_list(kind):
        return tfds.features.Sequence(_feature(kind.value_type))
    if pa.types.is_floating(kind):
        return tfds.features.Scalar(np.float32)  # the float type of tf.Example
    return tfds.features.Text() if pa.types.is_string(kind) else tfds.features.Scalar(kind.to_pandas_dtype())


def _example(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        return {field.name: _example(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_example(item, kind.value_type) for item in value]
    if value is None:
        return "" if pa.types.is_string(kind) else math.nan
    return value
