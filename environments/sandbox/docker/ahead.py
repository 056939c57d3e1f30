"""Preparation of single-use objects that take long to make: containers, for `environments.sandbox.docker`.

    lease(key) -> a prepared object, or a new one -> used once -> discarded in the background
                  and meanwhile the next with this key is made

Nothing is used twice. At most one object is prepared for each in use, and only for a key that was used before.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Thing = TypeVar("Thing")
_REMEMBERED_KEYS = 16


@dataclasses.dataclass(frozen=True)
class _Entry(Generic[Key, Thing]):
    key: Key
    thing: Future[Thing]


class Ahead(Generic[Key, Thing]):
    """Pool of prepared objects; see the module. Thread-safe.

    Args:
      make: function that makes an object for a key; its exceptions in `lease` reach the caller.
      discard: function that frees an object, used or not; must not raise.
      usable: function that checks whether an object made earlier is still usable.
      most: maximum number of prepared objects, over all keys.
      threads: number of background threads that make and discard.
    """

    def __init__(
        self,
        make: Callable[[Key], Thing],
        discard: Callable[[Thing], None],
        usable: Callable[[Thing], bool],
        most: int = 8,
        threads: int = 8,
    ) -> None:
        self._make, self._discard, self._usable, self._most = make, discard, usable, most
        self._entries: list[_Entry[Key, Thing]] = []
        """Objects prepared or in preparation, the oldest first."""
        self._in_use: collections.Counter[Key] = collections.Counter()
        self._recent: collections.deque[Key] = collections.deque(maxlen=_REMEMBERED_KEYS)
        self._lock = threading.Lock()
        self._closed = False
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ahead")

    @contextlib.contextmanager
    def lease(self, key: Key) -> Iterator[Thing]:
        """Yield an object for `key`, for one use."""
        thing = self._take(key)
        try:
            with self._lock:
                self._in_use[key] += 1
                surplus = self._prepare(key)
            for entry in surplus:
                self._drop(entry)
            yield thing
        finally:
            with self._lock:
                self._in_use[key] -= 1
                self._in_use += collections.Counter()  # removes keys with count 0
            self._in_background(thing)

    def clear(self) -> None:
        """Discard prepared objects."""
        with self._lock:
            entries, self._entries = self._entries, []
            self._recent.clear()
        for entry in entries:
            if (thing := _made(entry)) is not None:
                self._discard(thing)

    def close(self) -> None:
        """Discard prepared objects, and make no more; objects in use are discarded when they are returned."""
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait=True)
        self.clear()

    def _take(self, key: Key) -> Thing:
        while True:
            with self._lock:
                entry = next((entry for entry in self._entries if entry.key == key), None)
                if entry is not None:
                    self._entries.remove(entry)
            if entry is None:
                return self._make(key)
            thing = _made(entry)  # One in preparation was started earlier than a new one would be.
            if thing is not None:
                if self._usable(thing):
                    return thing
                self._in_background(thing)

    def _prepare(self, key: Key) -> list[_Entry[Key, Thing]]:
        """Start preparing the next object for `key`; return the entries that must make room for it."""
        known = key in self._recent
        if known:
            self._recent.remove(key)
        self._recent.append(key)
        ahead = sum(entry.key == key for entry in self._entries)
        if self._closed or not known or ahead >= min(self._in_use[key], self._most):
            return []
        self._entries.append(_Entry(key, self._threads.submit(self._make, key)))
        others = [entry for entry in self._entries if entry.key != key]
        surplus = others[: max(0, len(self._entries) - self._most)]
        self._entries = [entry for entry in self._entries if entry not in surplus]
        return surplus

    def _drop(self, entry: _Entry[Key, Thing]) -> None:
        """Discard an entry's object, once it is made."""

        def discard(future: Future[Thing]) -> None:
            if not future.cancelled() and future.exception() is None:
                self._in_background(future.result())

        entry.thing.cancel()
        entry.thing.add_done_callback(discard)

    def _in_background(self, thing: Thing) -> None:
        try:
            self._threads.submit(self._discard, thing)
        except RuntimeError:  # closed
            self._discard(thing)


def _made(entry: _Entry[Key, Thing]) -> Thing | None:
    """Wait for an entry's object; return None if it could not be made: the next use reports the reason."""
    try:
        return entry.thing.result()
    except Exception:
        return None
