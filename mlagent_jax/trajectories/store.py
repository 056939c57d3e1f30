"""Recorded steps as a dataset on disk: appended while a run goes on, resumed after any crash, read by any tool.

    00000.parquet  00001.parquet  ...    whole shards, of `trajectory_schema.SCHEMA`
    00002.jsonl                          the open shard, one record a line
    README.md                            the card: what is in it, by split, task, action and outcome

Steps are appended to the open shard, each on its way to the disk when `append` returns, and become a Parquet file of
the same number once they are large enough; a shard that exists in both forms was sealed before a crash, and its lines
are dropped. A step is stored once: appending it again, as a resumed collection does, changes nothing. Parquet rather
than ArrayRecord: any tool reads it, a column at a time, in a bucket too; tensorflow-datasets reads an export of it.
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
"""Of the open shard, as JSON lines, when it is sealed."""
ROW_GROUP = 256
"""Steps that are decompressed at once."""


class TrajectoryStore:
    """The steps in a folder (a local path or a URL), for readers; `Writer` adds to it.

    Raises:
      ConfigError: `open` on a folder without any.
    """

    def __init__(self, folder: epath.PathLike) -> None:
        self.folder = epath.Path(folder)

    @classmethod
    def open(cls, folder: epath.PathLike) -> Self:
        """The store in `folder`, which must hold one."""
        store = cls(folder)
        before = store.folder.parent / f"{store.folder.name}.jsonl"
        if not store.exists() and before.exists():
            raise ConfigError(
                f"{before} is of an older version: make a store of it by "
                f"`python tools/trajectories.py add {folder} {before}`"
            )
        if not store.exists():
            raise ConfigError(
                f"{folder} holds no recorded steps: the stage {store.folder.name!r} writes them; run that stage first"
            )
        return store

    def exists(self) -> bool:
        """Whether anything was recorded."""
        return self.folder.is_dir() and any(path.suffix in (".parquet", ".jsonl") for path in self.folder.iterdir())

    def shards(self) -> tuple[list[epath.Path], epath.Path | None]:
        """(whole shards in order, the open one if there is one)."""
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        whole = [name for name in names if name.endswith(".parquet")]
        after = [name for name in names if name.endswith(".jsonl") and f"{name[:-6]}.parquet" not in whole]
        return [self.folder / name for name in whole], self.folder / after[-1] if after else None

    def __iter__(self) -> Iterator[Record]:
        """Records in the order in which they were appended."""
        return self.iterate()

    def iterate(self, start: int = 0) -> Iterator[Record]:
        """From the `start`-th record on."""
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
                    for row in file.read_row_group(group, columns=names).slice(start).to_pylist():
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
        """Some columns of all steps (`task`, `outcome.kind`), without reading the others of whole shards."""
        whole, journal = self.shards()
        parts = [schema.SCHEMA.empty_table()]
        for path in whole:
            with _parquet(path) as file:
                parts.append(file.read(columns=list(paths)))
        if journal is not None:
            records = (_recorded(data, journal, place) for place, data in enumerate(jsonl.iterate(journal)))
            parts.append(schema.to_table(records))
        flat = [_flat(part, paths) for part in parts]
        return pa.concat_tables(flat)


class StoreTail:
    """Reads a store that another process writes, from where the last look ended; like `jsonl.Tail`."""

    def __init__(self, folder: epath.PathLike) -> None:
        self._store = TrajectoryStore(folder)
        self._count, self._seen = 0, None

    def new(self) -> tuple[bool, Iterator[dict[str, Any]]]:
        """Whether the store begins anew (what was read before is void), and the records since the last look, which are
        to be read to the end."""
        whole, journal = self._store.shards()
        files = [*whole, *([journal] if journal is not None else [])]
        seen = [(path.name, path.stat().length) for path in files]
        if seen == self._seen:
            return False, iter(())
        self._seen = seen
        # Steps are only ever added: fewer of them are another store.
        restarted = bool(self._count) and len(self._store) < self._count
        if restarted:
            self._count = 0
        return restarted, self._read()

    def _read(self) -> Iterator[dict[str, Any]]:
        for record in self._store.iterate(self._count):
            self._count += 1
            yield record.to_dict()


class Writer:
    """Adds steps to the store in a folder, which it makes where there is none; one writer at a time.

    Raises:
      ConfigError: another process writes to it.
    """

    def __init__(self, folder: epath.PathLike, shard_bytes: int = SHARD_BYTES) -> None:
        self.store = TrajectoryStore(folder)
        self._shard_bytes = shard_bytes
        self._held = contextlib.ExitStack()
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
        """Store those of `records` that are not there yet, in order; returns how many they were."""
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
        """Make a Parquet file of the open shard, if there is anything in it."""
        self._appender.close()
        path = self._journal
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=schema.SCHEMA)
            write_parquet(path.parent / f"{path.stem}.parquet", table)
            self._number += 1
        path.unlink(missing_ok=True)
        self._open()

    def close(self) -> None:
        """Leaves the open shard as it is."""
        self._appender.close()
        if not self._rows:
            self._journal.unlink(missing_ok=True)
        self._held.close()

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
        """Of the open shard, as they will be in its Parquet file."""

    def _lock(self) -> None:
        self._held.enter_context(sole_writer(self.store.folder, "wait for it, or stop it"))


def _recorded(data: dict[str, Any], journal: epath.Path, place: int) -> Record:
    """The step that is the `place`-th line of an open shard."""
    try:
        return Record.from_dict(data)
    except (KeyError, TypeError) as error:
        raise jsonl.RecordError(
            f"{journal}, record {place + 1} is no recorded step: is {journal.parent} a store, "
            "such as trajectories/collect in a run's workdir?"
        ) from error


def write_parquet(path: epath.Path, table: pa.Table) -> None:
    """Write a table of steps, all or nothing."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", row_group_size=ROW_GROUP)
    write_whole(path, out.getvalue())


@contextlib.contextmanager
def _parquet(path: epath.Path) -> Iterator[pq.ParquetFile]:
    with path.open("rb") as source:
        try:
            yield pq.ParquetFile(source)
        except pa.ArrowInvalid as error:
            raise schema.SchemaError(
                f"{path} is no whole Parquet file ({error}): delete it, and append again"
            ) from error


def _flat(table: pa.Table, paths: Sequence[str]) -> pa.Table:
    """The columns at `paths`, under these names."""
    found: dict[str, Any] = {}
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
        found[path] = column
    return pa.table(found)
