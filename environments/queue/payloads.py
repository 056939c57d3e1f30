"""How jobs and outcomes lie in a row: as JSON, or, over a few KB, as the hash of a blob in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from environments.files.blobs import Store, StoreError
from environments.protocol import canonical_json

INLINE_BYTES = 4096
"""Longest JSON kept in the row."""
_PREFIX = "blob:"
_THREADS = 16
"""A put to a bucket takes 50 ms, so a batch of jobs goes in parallel."""


class Payloads:
    """Packs and unpacks. Without a store everything stays in the row."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    def pack(self, data: dict[str, Any]) -> str:
        """Text for a row. Raises StoreError where the store cannot take it."""
        text = canonical_json(data)
        if self._store is None or len(text) <= INLINE_BYTES:
            return text
        return _PREFIX + self._store.put(text.encode())

    def unpack(self, text: str) -> dict[str, Any]:
        """What was packed. Raises StoreError where the store cannot give it."""
        if not text.startswith(_PREFIX):
            return json.loads(text)
        if self._store is None:
            raise StoreError("a payload lies in a store and this queue was opened without one: name the run's store")
        return json.loads(self._store.get(text.removeprefix(_PREFIX)))

    def pack_all(self, items: Sequence[dict[str, Any]]) -> list[str]:
        """`pack` of every item, in order."""
        if self._store is None or len(items) < 2:
            return [self.pack(item) for item in items]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.pack, items))

    def unpack_all(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """`unpack` of every text, in order."""
        if sum(text.startswith(_PREFIX) for text in texts) < 2:
            return [self.unpack(text) for text in texts]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.unpack, texts))
