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
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise RecordError(f"{path}:{number} is not JSON ({error}): delete that line") from error
            if not isinstance(record, dict):
                raise RecordError(f"{path}:{number} is {type(record).__name__}, not an object: delete that line")
            yield record


def read(path: epath.PathLike) -> list[dict[str, Any]]:
    """All of `iterate`."""
    return list(iterate(path))


def encode(record: Mapping[str, Any]) -> bytes:
    """One line. NaN and infinities are refused: they are not JSON, and other readers would choke on them.

    ASCII throughout, so that what a script printed (lone surrogates included) can always be written.
    """
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def replace(path: epath.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Write `records` in place of what `path` holds, all or nothing."""
    path = epath.Path(path)
    partial = path.parent / f"{path.name}.partial"
    partial.write_bytes(b"".join(map(encode, records)))
    partial.replace(path)


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
