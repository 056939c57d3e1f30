"""Texts by key in one SQLite file that the processes of one host share: what has been computed once is kept.

Holds executions (`environments.files.execution_cache`) and answers of the second model
(`environments.actions.second_model`).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path


class TextCache:
    """One table of a SQLite file. Thread-safe; safe among processes of one host."""

    def __init__(self, path: Path, table: str) -> None:
        """Open or create the file, readable by its owner alone.

        Args:
          table: an identifier, ours.

        Raises:
          OSError: it cannot be created.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._table = table
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, value TEXT NOT NULL)")

    def get(self, key: str) -> str | None:
        """The text kept under `key`, None where there is none."""
        select = f"SELECT value FROM {self._table} WHERE key = ?"  # noqa: S608 - the table's name is ours
        with self._lock:
            row = self._connection.execute(select, (key,)).fetchone()
        return None if row is None else row[0]

    def put(self, key: str, value: str) -> None:
        """Keep `value`, unless a text is kept under `key` already: the first stays."""
        insert = f"INSERT OR IGNORE INTO {self._table} VALUES (?, ?)"  # noqa: S608 - the table's name is ours
        with self._lock:
            self._connection.execute(insert, (key, value))

    def close(self) -> None:
        with self._lock:
            self._connection.close()
