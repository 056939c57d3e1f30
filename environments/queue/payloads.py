"""Encoding of jobs and outcomes in a row: as JSON or, above a few KB, as the hash of a blob in the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from environments.files.blobs import Store, StoreError
from environments.protocol import ProtocolError, canonical_json

T = TypeVar("T")

INLINE_BYTES = 4096
"""Maximum length of JSON kept in the row."""
_PREFIX = "blob:"
_THREADS = 16
"""Concurrent puts: one put to a bucket takes 50 ms."""


class Payloads:
    """Packs and unpacks payloads. Without a store everything stays in the row."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    def pack(self, data: dict[str, Any]) -> str:
        """Return the text for a row.

        Raises:
          StoreError: the store cannot be written.
        """
        text = canonical_json(data)
        if self._store is None or len(text) <= INLINE_BYTES:
            return text
        return _PREFIX + self._store.put(text.encode())

    def unpack(self, text: str, read: Callable[[dict[str, Any]], T]) -> T:
        """Load a packed payload and convert its JSON with `read`.

        Raises:
          StoreError: the store cannot be read.
          ProtocolError: `read` refuses the JSON.
        """
        if text.startswith(_PREFIX):
            if self._store is None:
                raise StoreError(
                    "a payload lies in a store and this queue was opened without one: name the run's store"
                )
            text = self._store.get(text.removeprefix(_PREFIX)).decode(errors="replace")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"it is no JSON: {error}") from error
        return read(data)

    def pack_all(self, items: Sequence[dict[str, Any]]) -> list[str]:
        """Pack every item, in order."""
        if self._store is None or len(items) < 2:
            return [self.pack(item) for item in items]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.pack, items))

    def unpack_all(self, texts: Sequence[str], read: Callable[[dict[str, Any]], T]) -> list[T | ProtocolError]:
        """Unpack every text, in order; a text that `read` refuses gives its error."""

        def unpack(text: str) -> T | ProtocolError:
            try:
                return self.unpack(text, read)
            except ProtocolError as error:
                return error

        if sum(text.startswith(_PREFIX) for text in texts) < 2:
            return [unpack(text) for text in texts]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(unpack, texts))
