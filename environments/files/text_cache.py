"""Texts by key in one SQLite file that the processes of one host share.

Holds executions (`environments.execution_cache`) and answers of language models. If the requested folder is on a
network file system, the file is in this host's own cache. A broken file is moved aside and replaced by a new one. If
the file cannot be written (a full disk), this process stops using it. Each case is a line in the log, never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
from pathlib import Path

from environments.files.file_systems import cache_directory, network_file_system

_log = logging.getLogger("mlagent.cache")


class TextCache:
    """One table of a SQLite file. Thread-safe; safe among processes of one host."""

    def __init__(self, path: Path, table: str) -> None:
        """Open or create the file, readable by its owner alone.

        Args:
          path: location of the file, if that is on a local file system.
          table: name of the table, an SQL identifier from our code.
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
        """Return the text under `key`, or None."""
        select = f"SELECT value FROM {self._table} WHERE key = ?"  # noqa: S608 - the table's name is ours
        row = self._execute(select, (key,))
        return row[0] if row and isinstance(row[0], str) else None

    def put(self, key: str, value: str) -> str:
        """Store `value` unless `key` has a text already; return the stored text."""
        insert = f"INSERT OR IGNORE INTO {self._table} VALUES (?, ?)"  # noqa: S608 - the table's name is ours
        self._execute(insert, (key, value))
        kept = self.get(key)
        return value if kept is None else kept

    def close(self) -> None:
        with self._lock:
            self._close()

    def _execute(self, statement: str, parameters: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return the first row of a statement's result; None if there is no row or no cache."""
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
        """Start a new file if this one is broken; stop using the cache if the file is unusable."""
        if isinstance(error, sqlite3.OperationalError):  # Locked, full, read-only: the file is intact.
            self._drop(error)
            return
        self._close()
        aside = self._path.with_name(f"{self._path.name}.broken")
        _log.warning(
            "the cache %s is broken (%s): a new one was started, the old one is %s", self._path, error, aside.name
        )
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
    """Return `path`, or a path in this host's own cache if several hosts may share it; None if both are shared."""
    path = path.absolute()
    if not network_file_system(path):
        return path
    folder = hashlib.sha256(os.fsencode(path.parent.resolve())).hexdigest()[:16]
    local = cache_directory() / "texts" / folder / path.name
    return None if network_file_system(local) else local
