"""Content-addressed blobs. Data too large for the queue (snapshots, logs, submissions) is stored here and named by
hash.

`open_store` opens a folder or any fsspec URL (`gs://bucket/path`, `s3://bucket/path`). The trainer and every worker
open the same URL. Equal bytes are stored once, and a blob never changes. Every read checks the hash, so a damaged blob
is an error and never a wrong state. Any exception of a file system or a bucket's driver is raised as a `StoreError`.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import datetime
import hashlib
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import fsspec

T = TypeVar("T")

ID = re.compile(r"[0-9a-f]{64}")
"""Pattern of a blob's id."""
_ATTEMPTS = 4
"""Attempts per operation on a bucket, in addition to the driver's own."""
_PAUSE_SECONDS = 0.2
"""Pause before the second attempt; each further pause is four times as long."""
_THREADS = 16
"""Concurrent requests to a bucket: one request takes 50 ms."""


class StoreError(OSError):
    """The store cannot read or write a blob. The message names the blob, the store and the remedy."""


class MissingBlobError(StoreError):
    """No such blob in this store."""


class CorruptBlobError(StoreError):
    """The bytes of a blob do not match its hash."""


def blob_id(data: bytes) -> str:
    """Return the id of `data`: its SHA-256, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


@dataclasses.dataclass(frozen=True)
class Blob:
    """A blob in a listing."""

    id: str
    size: int
    """Size in bytes."""
    modified: float
    """Time of the last `put`, in seconds since the epoch."""


class Store(abc.ABC):
    """Blobs by content hash. Safe among threads, processes and hosts that open the same `url`."""

    url: str

    def put(self, data: bytes) -> str:
        """Store `data` unless it is present, and return its id.

        Raises:
          StoreError: it cannot be written.
        """
        identity = blob_id(data)
        if self._size(identity) != len(data):  # This also repairs a blob that was truncated when its host crashed.
            self._write(identity, data)
        return identity

    def get(self, identity: str) -> bytes:
        """Return the bytes of the blob `identity`.

        Raises:
          MissingBlobError: no such blob.
          CorruptBlobError: its bytes do not match its hash.
          StoreError: it cannot be read.
        """
        data = self._read(_checked(identity))
        if blob_id(data) != identity:
            raise CorruptBlobError(
                f"blob {identity} in {self.url} is damaged ({len(data)} bytes of another hash): delete it, and what "
                "made it can write it again"
            )
        return data

    def has(self, identity: str) -> bool:
        """Check whether the blob exists (only `get` checks its bytes).

        Raises:
          StoreError: the store does not respond.
        """
        return self._size(_checked(identity)) is not None

    def missing(self, identities: Iterable[str]) -> set[str]:
        """Return the ids without a blob; see `has`."""
        return {identity for identity in identities if not self.has(identity)}

    @abc.abstractmethod
    def blobs(self) -> Iterator[Blob]:
        """List all blobs, in no order.

        Raises:
          StoreError: the store does not respond.
        """

    @abc.abstractmethod
    def delete(self, identity: str) -> None:
        """Delete a blob, if it exists.

        Raises:
          StoreError: it cannot be deleted.
        """

    @abc.abstractmethod
    def _size(self, identity: str) -> int | None:
        """Return the size in bytes, or None if there is no such blob."""

    @abc.abstractmethod
    def _read(self, identity: str) -> bytes: ...

    @abc.abstractmethod
    def _write(self, identity: str, data: bytes) -> None:
        """Write atomically: a reader sees all of the blob or nothing."""

    def _missing(self, identity: str) -> MissingBlobError:
        return MissingBlobError(
            f"no blob {identity} in {self.url}: trainer and workers must name the same store, and one that lives on "
            "another host must be shared (a bucket, a network folder)"
        )


class FolderStore(Store):
    """Blobs as files `ab/cd/abcd...` of a folder, which may be on a network file system.

    Writes go to a temporary file and are renamed. There is no fsync, which costs ten times the write: the hash reveals
    a blob damaged by a power cut.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"store {folder} cannot be created ({error.strerror}): name a folder you can write"
            ) from error

    def _path(self, identity: str) -> Path:
        return self.folder / identity[:2] / identity[2:4] / identity

    def _size(self, identity: str) -> int | None:
        try:
            return self._path(identity).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(identity, error) from error

    def _read(self, identity: str) -> bytes:
        try:
            return self._path(identity).read_bytes()
        except FileNotFoundError:
            raise self._missing(identity) from None
        except OSError as error:
            raise self._unreadable(identity, error) from error

    def _unreadable(self, identity: str, error: OSError) -> StoreError:
        return StoreError(f"blob {identity} cannot be read from {self.url} ({error.strerror or error}): mend the disk")

    def _write(self, identity: str, data: bytes) -> None:
        path = self._path(identity)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{identity[:8]}-{uuid.uuid4().hex}")
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StoreError(
                f"a blob of {len(data)} bytes cannot be written to {self.url} ({error.strerror}): free space there, "
                "or name another store"
            ) from error

    def put(self, data: bytes) -> str:
        """Store as `Store.put` does. An existing blob gets a new time, because garbage collection goes by age."""
        identity = super().put(data)
        try:
            os.utime(self._path(identity))
        except FileNotFoundError:  # Collected a moment ago.
            self._write(identity, data)
        except PermissionError:
            pass  # A file of another user, whose process keeps its time.
        except OSError as error:
            raise self._unreadable(identity, error) from error
        return identity

    def blobs(self) -> Iterator[Blob]:
        for path in self.folder.glob("??/??/*"):
            if ID.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    yield Blob(path.name, status.st_size, status.st_mtime)

    def delete(self, identity: str) -> None:
        try:
            self._path(_checked(identity)).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"blob {identity} cannot be deleted from {self.url} ({error.strerror})") from error


class RemoteStore(Store):
    """Blobs as objects of any fsspec file system with atomic writes, such as object stores."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        try:
            self._files, self._root = fsspec.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"store {self.url!r}: fsspec has no driver for {scheme}:// here ({error}); "
                "`pip install gcsfs` serves gs://, `pip install s3fs` serves s3://"
            ) from error

    def _path(self, identity: str) -> str:
        return f"{self._root}/{identity[:2]}/{identity}"

    def blobs(self) -> Iterator[Blob]:
        objects = self._try("listed", self._root, lambda path: self._files.find(path, detail=True))
        for path, facts in objects.items():
            name = path.rpartition("/")[2]
            if ID.fullmatch(name):
                yield Blob(name, facts["size"], _written(facts))

    def delete(self, identity: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._try("deleted", self._path(_checked(identity)), self._files.rm_file)

    def missing(self, identities: Iterable[str]) -> set[str]:
        ordered = sorted(set(identities))
        with ThreadPoolExecutor(_THREADS) as pool:
            exists = pool.map(self.has, ordered)
            return {identity for identity, is_there in zip(ordered, exists, strict=True) if not is_there}

    def _size(self, identity: str) -> int | None:
        try:
            return self._try("asked for", self._path(identity), self._files.size)
        except FileNotFoundError:
            return None

    def _read(self, identity: str) -> bytes:
        try:
            return self._try("read", self._path(identity), self._files.cat_file)
        except FileNotFoundError:
            raise self._missing(identity) from None

    def _write(self, identity: str, data: bytes) -> None:
        try:
            self._try("written", self._path(identity), lambda path: self._files.pipe_file(path, data))
        except FileNotFoundError as error:
            raise StoreError(f"a blob cannot be written to {self.url} ({error}): is there such a bucket?") from error

    def _try(self, done: str, path: str, operation: Callable[[str], T]) -> T:
        """Run an operation on a path of the bucket, with retries after any exception that may pass.

        Raises:
          FileNotFoundError: no such object.
          StoreError: the bucket refuses, or failed `_ATTEMPTS` times.
        """
        attempt = 1
        while True:
            try:
                return operation(path)
            except FileNotFoundError:
                raise
            except Exception as error:
                if isinstance(error, PermissionError) or attempt == _ATTEMPTS:
                    reason = f"{type(error).__name__}: {error}"
                    raise StoreError(f"{path} cannot be {done} in {self.url} ({reason})") from error
            time.sleep(_PAUSE_SECONDS * 4 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            attempt += 1


def _written(facts: Mapping[str, Any]) -> float:
    """Return an object's modification time. An object without one counts as new."""
    modified = next((facts[key] for key in ("updated", "LastModified", "mtime", "created") if facts.get(key)), None)
    if isinstance(modified, str):
        modified = datetime.datetime.fromisoformat(modified)
    return modified.timestamp() if isinstance(modified, datetime.datetime) else float(modified or time.time())


def open_store(url: str | os.PathLike[str]) -> Store:
    """Open the store at `url`: a folder (created if missing), `file://...`, or an fsspec URL.

    Raises:
      StoreError: the folder cannot be created, or no driver for this kind of URL is installed.
    """
    text = os.fspath(url)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return RemoteStore(text) if "://" in text else FolderStore(Path(text).absolute())


def _checked(identity: str) -> str:
    if not ID.fullmatch(identity):
        raise StoreError(f"blob id is {identity!r}; an id is the SHA-256 of the blob, 64 hex digits")
    return identity
