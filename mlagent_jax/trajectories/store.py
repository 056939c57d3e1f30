"""Recorded steps as a dataset on disk: appended during a run, resumable after any crash, readable by any tool.

    00000.parquet  00001.parquet  ...    sealed shards, of `trajectories.schema.SCHEMA`
    00002.jsonl                          the open shard, one record per line
    README.md                            the card: counts by split, task, action and outcome

`append` writes steps to the open shard and returns when they have left the process. A shard that is large enough
becomes a Parquet file with the same number. If a shard exists in both forms, it was sealed before a crash, and its
lines are dropped. A step is stored once: appending it again, as a resumed collection does, changes nothing. Parquet
rather than ArrayRecord: any tool reads it, by column, in a bucket too; tensorflow-datasets reads an export.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.files import sole_writer, write_whole
from mlagent_jax.trajectories import schema
from mlagent_jax.trajectories.record import Record

SHARD_BYTES = 64 * 2**20
"""Size at which the open shard is sealed, in bytes of JSON lines."""
ROW_GROUP = 256
"""Steps per Parquet row group, which is decompressed as a whole."""


class TrajectoryStore:
    """Reader of the steps in a folder (a local path or a URL); `Writer` adds steps.

    Raises:
      ConfigError: `open` on a folder without any.
    """

    def __init__(self, folder: epath.PathLike) -> None:
        self.folder = epath.Path(folder)

    @classmethod
    def open(cls, folder: epath.PathLike) -> Self:
        """Open the store in `folder`, which must hold one."""
        store = cls(folder)
        before = store.folder.parent / f"{store.folder.name}.jsonl"
        if not store.exists() and before.exists():
            raise ConfigError(
                f"{before} is of an older version: convert it to a store with "
                f"`python tools/trajectories.py add {folder} {before}`"
            )
        if not store.exists():
            raise ConfigError(
                f"{folder} holds no recorded steps: the stage {store.folder.name!r} writes them; run that stage first"
            )
        return store

    def exists(self) -> bool:
        """Return whether anything was recorded."""
        return self.folder.is_dir() and any(path.suffix in (".parquet", ".jsonl") for path in self.folder.iterdir())

    def shards(self) -> tuple[list[epath.Path], epath.Path | None]:
        """Return (sealed shards in order, the open one or None)."""
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        whole = [name for name in names if name.endswith(".parquet")]
        after = [name for name in names if name.endswith(".jsonl") and f"{name[:-6]}.parquet" not in whole]
        return [self.folder / name for name in whole], self.folder / after[-1] if after else None

    def __iter__(self) -> Iterator[Record]:
        """Yield records in the order in which they were appended."""
        return self.iterate()

    def iterate(self, start: int = 0) -> Iterator[Record]:
        """Yield records from number `start` on."""
        whole, journal = self.shards()
        for path in whole:
            with _parquet(path) as file:
                schema.checked(file.schema_arrow, str(path))
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if start >= rows:
                        start -= rows
                        continue
                    names = schema.SCHEMA.names
                    for row in file.read_row_group(group, columns=names, use_threads=False).slice(start).to_pylist():
                        yield schema.from_row(row)
                    start = 0
        if journal is not None:
            for place, data in enumerate(jsonl.iterate(journal)):
                if place >= start:
                    yield _recorded(data, journal, place)

    def __len__(self) -> int:
        whole, journal = self.shards()
        count = 0
        for path in whole:
            with _parquet(path) as file:
                count += file.metadata.num_rows
        return count + (sum(1 for _ in jsonl.iterate(journal)) if journal is not None else 0)

    def columns(self, *paths: str) -> pa.Table:
        """Return some columns of all steps (`task`, `outcome.kind`); only these are read from sealed shards."""
        whole, journal = self.shards()
        tables = [schema.SCHEMA.empty_table()]
        for path in whole:
            with _parquet(path) as file:
                tables.append(file.read(columns=list(paths), use_threads=False))
        if journal is not None:
            records = (_recorded(data, journal, place) for place, data in enumerate(jsonl.iterate(journal)))
            tables.append(schema.to_table(records))
        flat = [_flat(table, paths) for table in tables]
        return pa.concat_tables(flat)


class StoreTail:
    """Incremental reader of a store that another process writes; like `jsonl.Tail`."""

    def __init__(self, folder: epath.PathLike) -> None:
        self._store = TrajectoryStore(folder)
        self._count, self._seen = 0, None

    def new(self) -> tuple[bool, Iterator[dict[str, Any]]]:
        """Return whether the store was replaced (earlier records are void), and the records since the last call.
        Consume them to the end."""
        whole, journal = self._store.shards()
        files = [*whole, *([journal] if journal is not None else [])]
        seen = [(path.name, path.stat().length) for path in files]
        if seen == self._seen:
            return False, iter(())
        self._seen = seen
        # A store only grows: fewer steps mean another store.
        restarted = bool(self._count) and len(self._store) < self._count
        if restarted:
            self._count = 0
        return restarted, self._read()

    def _read(self) -> Iterator[dict[str, Any]]:
        for record in self._store.iterate(self._count):
            self._count += 1
            yield record.to_dict()


class Writer:
    """Appends steps to the store in a folder, which is created if missing; one writer at a time.

    Raises:
      ConfigError: Another process writes to it.
    """

    def __init__(self, folder: epath.PathLike, shard_bytes: int = SHARD_BYTES) -> None:
        self.store = TrajectoryStore(folder)
        self._shard_bytes = shard_bytes
        self._resources = contextlib.ExitStack()
        self.store.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        whole, journal = self.store.shards()
        for path in self.store.folder.glob("*.jsonl"):
            if path != journal:
                path.unlink()  # sealed before a crash
        known = self.store.columns(*schema.KEY)
        self._known = set(zip(*(column.to_pylist() for column in known.columns), strict=True))
        self._number = len(whole)
        self._open()

    def append(self, records: Iterable[Record]) -> int:
        """Store the new ones among `records`, in order; return their number."""
        new = []
        for record in records:
            if (identity := schema.key(record)) not in self._known:
                self._known.add(identity)
                new.append(record.to_dict())
        if new:
            self._appender.append(*new)
            self._rows += map(schema.to_row, new)
            if self._journal.stat().length >= self._shard_bytes:
                self.seal()
        return len(new)

    def seal(self) -> None:
        """Convert the open shard to a Parquet file, if it has any steps."""
        self._appender.close()
        path = self._journal
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=schema.SCHEMA)
            write_parquet(path.parent / f"{path.stem}.parquet", table)
            self._number += 1
        path.unlink(missing_ok=True)
        self._open()

    def close(self) -> None:
        """Close the store; the open shard stays open for the next writer."""
        self._appender.close()
        if not self._rows:
            self._journal.unlink(missing_ok=True)
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _journal(self) -> epath.Path:
        return self.store.folder / f"{self._number:05d}.jsonl"

    def _open(self) -> None:
        self._appender = jsonl.Appender(self._journal)
        self._rows = list(map(schema.to_row, jsonl.iterate(self._journal)))
        """Rows of the open shard, as in its future Parquet file."""

    def _lock(self) -> None:
        self._resources.enter_context(sole_writer(self.store.folder, "wait for it, or stop it"))


def _recorded(data: dict[str, Any], journal: epath.Path, place: int) -> Record:
    """Return the step on line `place` of an open shard."""
    try:
        return Record.from_dict(data)
    except (KeyError, TypeError) as error:
        raise jsonl.RecordError(
            f"{journal}, record {place + 1} is not a recorded step: is {journal.parent} a store, "
            "such as trajectories/collect in a run's workdir?"
        ) from error


def write_parquet(path: epath.Path, table: pa.Table) -> None:
    """Write a table of steps atomically."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", row_group_size=ROW_GROUP)
    write_whole(path, out.getvalue())


@contextlib.contextmanager
def _parquet(path: epath.Path) -> Iterator[pq.ParquetFile]:
    # Read it without threads: one that still lets go of its buffers when the interpreter ends aborts the program.
    with path.open("rb") as source:
        try:
            yield pq.ParquetFile(source)
        except pa.ArrowInvalid as error:
            raise schema.SchemaError(
                f"{path} is not a complete Parquet file ({error}): delete it and append again"
            ) from error


def _flat(table: pa.Table, paths: Sequence[str]) -> pa.Table:
    """Return the columns at `paths`, under these names."""
    columns: dict[str, Any] = {}
    for path in paths:
        name, *fields = path.split(".")
        column = table.column(name)
        for field in fields:
            column = pa.chunked_array(
                [
                    chunk.field(field) if not chunk.null_count else pa.compute.struct_field(chunk, field)
                    for chunk in column.chunks
                ],
                type=column.type.field(field).type,
            )
        columns[path] = column
    return pa.table(columns)
