"""Schema of recorded steps as a table: one row per `Record`, its fields as columns, state and outcome as structs.

A row contains the whole record, and reading it gives an equal one. Values without a fixed shape (the arguments of an
action) are JSON text. Workspaces are named by content hash (`state.snapshot`, `outcome.snapshot`); their bytes are in
the run's store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from mlagent_jax.trajectories.record import Record

VERSION = "1.1.0"
ADDED = ("repairs",)
"""Fields that tables of version 1.0 lack."""

_STEP = pa.struct([("action", pa.string()), ("observation", pa.string())])
_STATE = pa.struct(
    [
        ("task", pa.string()),
        ("history", pa.list_(_STEP)),
        ("snapshot", pa.string()),
        ("script", pa.string()),
        ("metric", pa.float64()),
        ("ideas", pa.list_(pa.string())),
    ]
)
_SCALE = pa.struct([("m_init", pa.float64()), ("m_best", pa.float64()), ("higher_is_better", pa.bool_())])
_OUTCOME = pa.struct(
    [
        ("kind", pa.string()),
        ("observation", pa.string()),
        ("snapshot", pa.string()),
        ("script", pa.string()),
        ("metric_before", pa.float64()),
        ("metric_after", pa.float64()),
        ("scale", _SCALE),
        ("reward", pa.float64()),
        ("action_name", pa.string()),
        ("action_input", pa.string()),
        ("final", pa.bool_()),
        ("progress", pa.list_(pa.string())),
        ("seconds", pa.float64()),
        ("cpu_seconds", pa.float64()),
        ("reason", pa.string()),
        ("diff", pa.string()),
        ("submission", pa.string()),
        ("cached", pa.bool_()),
        ("sandbox", pa.string()),
        ("repairs", pa.list_(pa.string())),
        ("version", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("stage", pa.string()),
        ("split", pa.string()),
        ("task", pa.string()),
        ("trajectory", pa.int64()),
        ("step", pa.int64()),
        ("target", pa.bool_()),
        ("prompt", pa.string()),
        ("action", pa.string()),
        ("state", _STATE),
        ("outcome", _OUTCOME),
    ],
    metadata={"mlagent_version": VERSION},
)
KEY = ("run", "stage", "split", "task", "trajectory", "step")
"""Columns that identify a step."""


class SchemaError(ValueError):
    """A table does not hold recorded steps; the message names the column and the remedy."""


def key(record: Record) -> tuple[Any, ...]:
    """Return the identity of a record among all recorded ones."""
    return tuple(getattr(record, name) for name in KEY)


def to_row(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return `Record.to_dict()` as a row of `SCHEMA`. Characters without UTF-8 (lone surrogates) become question
    marks."""
    arguments = data["outcome"]["action_input"]
    arguments = None if arguments is None else json.dumps(arguments, sort_keys=True)
    return _encodable({**data, "outcome": {**data["outcome"], "action_input": arguments}})


def from_row(row: Mapping[str, Any]) -> Record:
    """Return the record of a row."""
    outcome = dict(row["outcome"])
    if outcome["action_input"] is not None:
        outcome["action_input"] = json.loads(outcome["action_input"])
    return Record.from_dict({**row, "outcome": outcome})


def to_table(records: Iterable[Record]) -> pa.Table:
    """Return records as a table of `SCHEMA`."""
    return pa.Table.from_pylist([to_row(record.to_dict()) for record in records], schema=SCHEMA)


def checked(actual: pa.Schema, where: str) -> None:
    """Check that a table has all columns of `SCHEMA` with their types; extra columns are allowed.

    Raises:
      SchemaError: A column is missing or has another type.
    """
    for field in SCHEMA:
        place = actual.get_field_index(field.name)
        if place < 0:
            raise SchemaError(f"{where} has no column {field.name!r}: it holds no recorded steps of version {VERSION}")
        if not _alike(actual.field(place).type, field.type):
            raise SchemaError(f"{where}: column {field.name!r} is {actual.field(place).type}, not {field.type}")


def _alike(actual: pa.DataType, wanted: pa.DataType) -> bool:
    """Return whether types are equal, ignoring offset width and field order of structs, which depend on the writer."""
    if pa.types.is_struct(wanted):
        return pa.types.is_struct(actual) and all(
            _alike(actual.field(field.name).type, field.type)
            if actual.get_field_index(field.name) >= 0
            else field.name in ADDED
            for field in wanted
        )
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(actual) or pa.types.is_large_list(actual)
        return is_list and _alike(actual.value_type, wanted.value_type)
    if pa.types.is_string(wanted):
        return pa.types.is_string(actual) or pa.types.is_large_string(actual)
    return actual == wanted or pa.types.is_null(actual)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {name: _encodable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encodable(item) for item in value]
    return value
