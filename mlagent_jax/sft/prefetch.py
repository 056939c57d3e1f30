"""Items that a thread makes while the one before is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """Iterator over `make(index)` for each of `indices`, one item ahead; to be used in a `with`.

    All items are made by one thread, in order. What `make` raises is raised where its item is taken.
    """

    def __init__(self, make: Callable[[int], Item], indices: Iterable[int]) -> None:
        self._make, self._indices = make, iter(indices)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: Future[Item] | None = None

    def __enter__(self) -> Self:
        self._submit()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        if self._ahead is None:
            raise StopIteration
        item = self._ahead.result()
        self._submit()
        return item

    def _submit(self) -> None:
        index = next(self._indices, None)
        self._ahead = None if index is None else self._thread.submit(self._make, index)
