"""Files of one JSON record a line, as a run leaves them in its workdir: appended while it goes on, read by the report.

A crash in the middle of a write leaves at most one torn line, the last. Readers drop it; `Appender` cuts it off before
it adds anything, so that a torn line never runs into the next record. Paths may be local or URLs (`gs://`, `s3://`):
object stores cannot append, so there the whole object is written anew with every record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from etils import epath

from mlagent_jax.runtime.files import write_whole


class RecordError(ValueError):
    """A line of a record file is broken; the message names the file, the line and the remedy."""


def iterate(path: epath.PathLike) -> Iterator[dict[str, Any]]:
    """Whole records of `path` one by one, without holding the file in memory; none where there is no such file.

    Raises:
      RecordError: a line before the last is not a JSON object.
    """
    path = epath.Path(path)
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # Torn, or being written right now.
            if line.strip():
                yield _decode(line, path, number)


def _decode(line: bytes, path: epath.Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RecordError(f"{path}:{number} is not JSON ({error}): delete that line") from error
    if not isinstance(record, dict):
        raise RecordError(f"{path}:{number} is {type(record).__name__}, not an object: delete that line")
    return record


def read(path: epath.PathLike) -> list[dict[str, Any]]:
    """All of `iterate`."""
    return list(iterate(path))


class Tail:
    """Reads a record file that others write, from where the last look ended.

    A file that was replaced by another, or cut (a resume forgets the steps after its checkpoint), is read from its
    start again: the last line read must still stand where it stood.
    """

    def __init__(self, path: epath.PathLike) -> None:
        self._path = epath.Path(path)
        self._offset, self._last, self._number = 0, b"", 0

    def new(self) -> tuple[bool, Iterator[dict[str, Any]]]:
        """Whether the file begins anew (what was read before is void), and the whole records since the last look.

        The records are to be read to the end. A file that is not there has none.

        Raises:
          RecordError: as `iterate`, while reading.
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
        with self._path.open("rb") as file:
            file.seek(self._offset - len(self._last))
            return file.read(len(self._last)) == self._last

    def _read(self) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # Torn, or being written right now.
                self._offset, self._last, self._number = self._offset + len(line), line, self._number + 1
                if line.strip():
                    yield _decode(line, self._path, self._number)


def encode(record: Mapping[str, Any]) -> bytes:
    """One line. NaN and infinities are refused: they are not JSON, and other readers would choke on them.

    ASCII throughout, so that what a script printed (lone surrogates included) can always be written.
    """
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def replace(path: epath.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Write `records` in place of what `path` holds, all or nothing."""
    write_whole(path, b"".join(map(encode, records)))


class Appender:
    """Adds records to one file. Each has left this process when `append` returns, so a crash loses none."""

    def __init__(self, path: epath.PathLike) -> None:
        self._path = epath.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._path.read_bytes() if self._path.exists() else b""
        torn = whole.rpartition(b"\n")[2]
        # `epath` gives a plain pathlib-like local path for everything without a scheme.
        if "://" in os.fspath(self._path):
            self._file, self._whole = None, whole.removesuffix(torn)
        else:
            self._file = open(self._path, "ab")  # noqa: SIM115 (held open until close)
            self._file.truncate(len(whole) - len(torn))

    def append(self, *records: Mapping[str, Any]) -> None:
        data = b"".join(map(encode, records))
        if self._file is None:
            self._whole += data
            self._path.write_bytes(self._whole)
        else:
            self._file.write(data)
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
