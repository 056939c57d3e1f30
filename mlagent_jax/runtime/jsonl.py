"""Files of one JSON record per line in a run's workdir: appended during the run, read by the report.

A crash during a write leaves at most one torn line, the last. Readers drop it; `Appender` removes it before appending,
so that a torn line never runs into the next record. Paths may be local or URLs (`gs://`, `s3://`).

Object stores cannot append. There a file is an open part, the object of that name, which is written anew with each
record, and closed parts of about a MiB beside it (`metrics.jsonl.00001`), which are written once. The first line of
the open part says how many closed ones come before it, so that a crash between two writes loses and repeats nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from etils import epath

from mlagent_jax.runtime.files import write_whole

_HEAD = re.compile(rb'\{"closed_parts":(\d+)\}')
PART_BYTES = 2**20
"""Size from which on the open part of an object is closed."""


class RecordError(ValueError):
    """A line of a record file is broken; the message names the file, the line and the remedy."""


def iterate(path: epath.PathLike) -> Iterator[dict[str, Any]]:
    """Yield complete records of `path` without holding the file in memory; none if the file does not exist.

    Raises:
      RecordError: A line before the last is not a JSON object.
    """
    path = epath.Path(path)
    if not path.exists():
        return
    for number, line in enumerate(_lines(path, 0), start=1):
        if not line.endswith(b"\n"):
            return  # Torn, or being written right now.
        if line.strip():
            yield _decode(line, path, number)


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)  # `epath` treats everything without a scheme as a local path


def _lines(path: epath.Path, offset: int) -> Iterator[bytes]:
    """Yield the lines of a file from an offset in bytes, counted over all its parts but the open one's first line."""
    if not _is_remote(path):
        with path.open("rb") as file:
            file.seek(offset)
            yield from file
        return
    closed, rest = _open_part(path)
    for number in range(1, closed + 1):
        part = _closed_part(path, number)
        size = part.stat().length
        if offset < size:
            with part.open("rb") as file:
                file.seek(offset)
                yield from file
        offset = max(0, offset - size)
    yield from rest[offset:].splitlines(keepends=True)


def _open_part(path: epath.Path) -> tuple[int, bytes]:
    """Return the number of closed parts of an object, and its own records."""
    whole = path.read_bytes() if path.exists() else b""
    head, _, rest = whole.partition(b"\n")
    match = _HEAD.fullmatch(head)
    return (int(match[1]), rest) if match else (0, whole)


def _closed_part(path: epath.Path, number: int) -> epath.Path:
    return path.parent / f"{path.name}.{number:05d}"


def _decode(line: bytes, path: epath.Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RecordError(f"{path}:{number} is not JSON ({error}): delete that line") from error
    if not isinstance(record, dict):
        raise RecordError(f"{path}:{number} is {type(record).__name__}, not an object: delete that line")
    return record


def read(path: epath.PathLike) -> list[dict[str, Any]]:
    """Return all records of `iterate` as a list."""
    return list(iterate(path))


class Tail:
    """Incremental reader of a record file that another process writes.

    A replaced or truncated file is read from its start again (a resumed run truncates the steps after its checkpoint).
    The reader notices because the last line read is no longer in its place.
    """

    def __init__(self, path: epath.PathLike) -> None:
        self._path = epath.Path(path)
        self._offset, self._last, self._number = 0, b"", 0

    def new(self) -> tuple[bool, Iterator[dict[str, Any]]]:
        """Return whether the file was replaced (earlier records are void), and the complete records since the last
        call.

        Consume the records to the end. A missing file has none.

        Raises:
          RecordError: As `iterate`, while reading.
        """
        if not self._path.exists():
            return self._restart(), iter(())
        restarted = not self._continues() and self._restart()
        return restarted, self._read()

    def _restart(self) -> bool:
        before, self._offset, self._last, self._number = self._offset, 0, b"", 0
        return before > 0

    def _continues(self) -> bool:
        if not self._offset:
            return True
        return next(_lines(self._path, self._offset - len(self._last)), b"") == self._last

    def _read(self) -> Iterator[dict[str, Any]]:
        for line in _lines(self._path, self._offset):
            if not line.endswith(b"\n"):
                return  # Torn, or being written right now.
            self._offset, self._last, self._number = self._offset + len(line), line, self._number + 1
            if line.strip():
                yield _decode(line, self._path, self._number)


def encode(record: Mapping[str, Any]) -> bytes:
    """Return one line. NaN and infinities are errors: they are not JSON, and other readers would reject them.

    The line is ASCII, so that anything a script printed (lone surrogates included) can be written.
    """
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def replace(path: epath.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace the content of `path` by `records` atomically. They may come from the file itself."""
    path = epath.Path(path)
    closed = _open_part(path)[0] if _is_remote(path) else 0
    write_whole(path, b"".join(map(encode, records)))
    for number in range(1, closed + 1):
        _closed_part(path, number).unlink(missing_ok=True)


class Appender:
    """Appends records to one file. A record has left this process when `append` returns, so a crash loses none."""

    def __init__(self, path: epath.PathLike) -> None:
        self._path = epath.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if _is_remote(self._path):
            self._file, (self._closed, self._open) = None, _open_part(self._path)
            self._open = self._open[: self._open.rfind(b"\n") + 1]
        else:
            whole = self._path.read_bytes() if self._path.exists() else b""
            self._file = open(self._path, "ab")  # noqa: SIM115 (held open until close)
            self._file.truncate(whole.rfind(b"\n") + 1)

    def append(self, *records: Mapping[str, Any]) -> None:
        data = b"".join(map(encode, records))
        if self._file is not None:
            self._file.write(data)
            self._file.flush()
            return
        if len(self._open) >= PART_BYTES:
            # Not read before the open part, below, names it.
            _closed_part(self._path, self._closed + 1).write_bytes(self._open)
            self._closed, self._open = self._closed + 1, b""
        self._open += data
        head = b'{"closed_parts":%d}\n' % self._closed if self._closed else b""
        self._path.write_bytes(head + self._open)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
