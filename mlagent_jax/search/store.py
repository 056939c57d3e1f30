"""The tree of a search on disk: `tree.sqlite`, for any number of processes of one host.

A process claims the next node in one transaction, in which the strategy sees the newest tree: no two processes choose
from the same one. A claim is a lease. If its process dies, or does not renew it, another process (or the same command,
started again) takes the same step. A result is accepted once, from the process that holds the lease.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil

from environments.protocol import Scale, State
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.search.tree import Node, Plan, Result, Tree

FILE = "tree.sqlite"
VERSION = 1
LEASE_SECONDS = 60.0
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS nodes (
  number INTEGER PRIMARY KEY, operator TEXT NOT NULL, parent INTEGER NOT NULL, other INTEGER, result TEXT,
  began REAL NOT NULL, ended REAL, owner TEXT NOT NULL, until REAL NOT NULL);
CREATE INDEX IF NOT EXISTS open_nodes ON nodes (number) WHERE result IS NULL;
"""
Choose = Callable[[Tree, int], Plan | None]
"""Function from the newest tree and the number of the next node to a plan; None: nothing to do now."""


class TreeStore:
    """One process's access to a stored tree.

    Attributes:
      tree: The tree as of the last call.

    Args:
      folder: Folder of the search; local.
      settings: Settings that the search depends on. They must equal those that the folder was begun with.
      start: State of the root.
      scale: Reference points of the task.

    Raises:
      ConfigError: The folder belongs to a search with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], start: State, scale: Scale) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        process = psutil.Process()
        self._owner = f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}:{secrets.token_hex(4)}"
        self._lock = threading.RLock()
        self._database = sqlite3.connect(folder / FILE, timeout=60.0, isolation_level=None, check_same_thread=False)
        self._database.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_TABLES}")
        self.tree = Tree(start, scale)
        settings = {**settings, "version": VERSION}
        with self._transaction():
            if (known := self.fact("settings")) is None:
                self._set("settings", known := settings)
        if differ := _differences(known, settings):
            self._database.close()
            raise ConfigError(
                f"{folder} holds a search with other settings ({differ}): choose another --output, or set them back"
            )
        self.refresh()

    def fact(self, name: str) -> Any:
        """Return a stored fact, or None."""
        row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def record(self, name: str, value: Any) -> None:
        """Store a fact."""
        with self._transaction():
            self._set(name, value)

    def _set(self, name: str, value: Any) -> None:
        self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def refresh(self) -> Tree:
        """Read the changes of other processes, and return the tree."""
        with self._lock:
            wanted = [node.number for node in self.tree.pending()]
            marks = ",".join("?" * len(wanted))
            rows = self._database.execute(
                f"SELECT number, operator, parent, other, result, began, ended FROM nodes "  # noqa: S608 - only marks
                f"WHERE number > ? OR number IN ({marks}) ORDER BY number",
                (len(self.tree), *wanted),
            ).fetchall()
            for number, operator, parent, other, result, began, ended in rows:
                read = None if result is None else Result.from_dict(json.loads(result))
                self.tree.add(number, Plan(operator, parent, other), read, began, ended)
            return self.tree

    def claim(self, choose: Choose) -> Node | None:
        """Claim the next node: one whose process died or lost its lease, else a new one that `choose` plans.

        The leases of this process are renewed first: they expire while the host sleeps, but their steps go on.

        Returns:
          The node, or None if `choose` plans nothing.
        """
        with self._transaction():
            self.refresh()
            now = time.time()
            self._renew(now)
            rows = self._database.execute("SELECT number, owner, until FROM nodes WHERE result IS NULL ORDER BY number")
            for number, owner, until in rows.fetchall():
                if owner != self._owner and (until < now or _is_dead(owner)):
                    self._database.execute(
                        "UPDATE nodes SET owner = ?, until = ?, began = ? WHERE number = ?",
                        (self._owner, now + LEASE_SECONDS, now, number),
                    )
                    self.refresh()
                    return self.tree.nodes[number]
            number = len(self.tree) + 1
            plan = choose(self.tree, number)
            if plan is None:
                return None
            self._database.execute(
                "INSERT INTO nodes (number, operator, parent, other, began, owner, until) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, plan.operator, plan.parent, plan.other, now, self._owner, now + LEASE_SECONDS),
            )
            return self.tree.add(number, plan, None, now, None)

    def finish(self, number: int, result: Result) -> bool:
        """Store a result. Return False if the lease was lost; the result is dropped then."""
        with self._transaction():
            done = self._database.execute(
                "UPDATE nodes SET result = ?, ended = ? WHERE number = ? AND owner = ? AND result IS NULL",
                (result.to_json(), time.time(), number, self._owner),
            )
            self.refresh()
            return done.rowcount == 1

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew the leases of this process in a thread, for the duration of the context."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(LEASE_SECONDS / 4):
                with contextlib.suppress(sqlite3.OperationalError), self._transaction():
                    self._renew(time.time())

        thread = threading.Thread(target=renew, name="search-leases", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _renew(self, now: float) -> None:
        """Renew the leases of this process, within a transaction."""
        self._database.execute(
            "UPDATE nodes SET until = ? WHERE owner = ? AND result IS NULL", (now + LEASE_SECONDS, self._owner)
        )

    def close(self) -> None:
        """Release the leases of steps in work, and close the database."""
        with self._lock:
            with self._transaction():
                self._database.execute("UPDATE nodes SET until = 0 WHERE owner = ? AND result IS NULL", (self._owner,))
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def _differences(known: dict[str, Any], given: dict[str, Any]) -> str:
    names = [name for name in sorted({*known, *given}) if known.get(name) != given.get(name)]
    return "; ".join(f"{name} was {known.get(name)!r}, is {given.get(name)!r}" for name in names)


def _is_dead(owner: str) -> bool:
    """Return whether the process `owner` was on this host and has ended. For other hosts only the lease decides."""
    host, pid, created, _ = owner.rsplit(":", 3)
    if host != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(created)) > 1.0
    except psutil.NoSuchProcess:
        return True
