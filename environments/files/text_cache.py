"""Texts by key in one SQLite file that the processes of one host share: what has been computed once is kept.

Holds executions (`environments.files.execution_cache`) and answers of language models. It is a cache: where the folder
asked for is on a network file system the file lies in this host's own cache, a broken file is put aside and begun anew,
and one that cannot be written (a full disk) is used no more by this process. Each is a line in the log, never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
from pathlib import Path

from environments.files.file_systems import network_file_system

_log = logging.getLogger("mlagent.cache")


class TextCache:
    """One table of a SQLite file. Thread-safe; safe among processes of one host."""

    def __init__(self, path: Path, table: str) -> None:
        """Open or create the file, readable by its owner alone.

        Args:
          path: where it lies, if that is a local file system.
          table: an identifier, ours.
        """
        self._table = table
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._path = _on_this_host(path)
        if self._path is None:
            self._drop("neither its folder nor this host's cache is on a local disk")
            return
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._recover(error)
        except OSError as error:
            self._drop(error)

    def get(self, key: str) -> str | None:
        """The text kept under `key`, None where there is none."""
        select = f"SELECT value FROM {self._table} WHERE key = ?"  # noqa: S608 - the table's name is ours
        row = self._execute(select, (key,))
        return row[0] if row and isinstance(row[0], str) else None

    def put(self, key: str, value: str) -> str:
        """Keep `value` unless a text is kept under `key` already; returns the one that is kept."""
        insert = f"INSERT OR IGNORE INTO {self._table} VALUES (?, ?)"  # noqa: S608 - the table's name is ours
        self._execute(insert, (key, value))
        kept = self.get(key)
        return value if kept is None else kept

    def close(self) -> None:
        with self._lock:
            self._close()

    def _execute(self, statement: str, parameters: tuple[str, ...]) -> tuple[str, ...] | None:
        """The first row that a statement gives; None where there is none, or no cache."""
        with self._lock:
            if self._connection is None:
                return None
            try:
                return self._connection.execute(statement, parameters).fetchone()
            except sqlite3.DatabaseError as error:
                self._recover(error)
                return None

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {self._table} (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
        )

    def _recover(self, error: sqlite3.DatabaseError) -> None:
        """Begin anew where the file is broken; do without where it cannot be used."""
        if isinstance(error, sqlite3.OperationalError):  # Locked, full, read-only: the file is whole.
            self._drop(error)
            return
        self._close()
        aside = self._path.with_name(f"{self._path.name}.broken")
        _log.warning("the cache %s is broken (%s): begun anew, the old one is %s", self._path, error, aside.name)
        try:
            os.replace(self._path, aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._open()
        except (OSError, sqlite3.DatabaseError) as second:
            self._drop(second)

    def _drop(self, reason: object) -> None:
        self._close()
        _log.warning("the cache %s is not used from here on: %s", self._path or self._table, reason)

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _on_this_host(path: Path) -> Path | None:
    """`path`, or its stand-in in this host's own cache where several hosts may share it; None where there is none."""
    path = path.absolute()
    if not network_file_system(path):
        return path
    from environments.sandbox.rootfs.assemble import cache_directory

    place = hashlib.sha256(os.fsencode(path.parent.resolve())).hexdigest()[:16]
    here = cache_directory() / "texts" / place / path.name
    return None if network_file_system(here) else here
