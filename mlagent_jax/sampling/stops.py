"""Stop strings, decided on device: an automaton a request reads the bytes of each drawn token, so that a string across
token borders is found with the token that completes it.

A token is its bytes (`Tokenizer.spellings`); a set of stop strings is an Aho-Corasick automaton over bytes, a row of
256 next nodes a node. All sets in use lie in one table; node 0 belongs to requests without stop strings and is never
left. UTF-8 synchronises itself, so that bytes are found where the text has the string, and nowhere else.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax.runtime.processes import everywhere

StopSet = tuple[bytes, ...]
_CAPACITY = 64  # nodes of the first table that is made for a stop string; each growth is a compilation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spellings:
    """The bytes of every token, on device."""

    letters: jax.Array
    """uint8 [vocab, longest]"""
    lengths: jax.Array
    """int32 [vocab]"""

    @classmethod
    def of(cls, spellings: Sequence[bytes], vocab_size: int) -> Self:
        """Of a tokenizer's tokens, in the order of their ids; rows of the vocabulary beyond them have no bytes."""
        lengths = np.zeros((vocab_size,), np.int32)
        lengths[: len(spellings)] = [len(spelling) for spelling in spellings]
        letters = np.zeros((vocab_size, max(1, int(lengths.max(initial=0)))), np.uint8)
        for token, spelling in enumerate(spellings):
            letters[token, : len(spelling)] = np.frombuffer(spelling, np.uint8)
        return cls(jnp.asarray(letters), jnp.asarray(lengths))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StopTable:
    """The automata of the stop sets in use, on device."""

    spellings: Spellings
    following: jax.Array
    """int32 [nodes, 256]: the node after each byte."""
    complete: jax.Array
    """bool [nodes]: a stop string ends here."""

    def follow(self, nodes: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Read a token a slot: (nodes int32 [slots], tokens int32 [slots]) -> (nodes, whether a stop string ended).

        As many steps as the longest drawn token has bytes, none where no slot has stop strings.
        """
        lengths = jnp.where(nodes > 0, self.spellings.lengths.at[tokens].get(mode="clip"), 0)
        letters = self.spellings.letters.at[tokens].get(mode="clip")

        def read(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            index, nodes, ended = carry
            letter = jax.lax.dynamic_index_in_dim(letters, index, axis=1, keepdims=False)
            nodes = jnp.where(index < lengths, self.following[nodes, letter], nodes)
            return index + 1, nodes, ended | self.complete[nodes]

        longest = jnp.max(lengths)
        start = (jnp.int32(0), nodes, jnp.zeros(nodes.shape, bool))
        return jax.lax.while_loop(lambda carry: carry[0] < longest, read, start)[1:]


class StopSets:
    """The host's side of the table: where the automaton of each set lies. Grows by doubling; forgets unused sets."""

    def __init__(self, spellings: Spellings | None = None) -> None:
        self._spelled = spellings is not None
        nothing = Spellings(everywhere(np.zeros((1, 1), np.uint8)), everywhere(np.zeros((1,), np.int32)))
        self._spellings = spellings or nothing
        self._places: dict[StopSet, range] = {}
        self._following = np.zeros((1, 256), np.int32)
        self._complete = np.zeros((1,), bool)
        self._upload()

    @property
    def table(self) -> StopTable:
        """As programs take it; a new one after `root` has added a set."""
        return self._table

    @property
    def size(self) -> int:
        """Nodes that the table has room for: its shape, and so a program's."""
        return len(self._complete)

    def root(self, stop: StopSet, in_use: Iterable[StopSet] = ()) -> int:
        """The node where a request with these stop strings starts; sets that are not `in_use` may make room for it.

        Raises:
            ValueError: Where a string is empty, or what tokens spell is not known here.
        """
        if not stop:
            return 0
        if stop in self._places:
            return self._places[stop].start
        if not self._spelled:
            raise ValueError(f"stop={stop} needs a tokenizer: this sampler knows token ids only")
        following, complete = automaton(stop)
        kept = {*in_use}
        self._places = {held: place for held, place in self._places.items() if held in kept}
        start = self._gap(len(complete))
        place = self._places[stop] = range(start, start + len(complete))
        self._following[place] = following + start
        self._complete[place] = complete
        self._upload()
        return start

    def _gap(self, size: int) -> int:
        """The first free nodes in a row, so many; makes them where there are none."""
        start = 1
        for place in sorted(self._places.values(), key=lambda place: place.start):
            if place.start - start >= size:
                return start
            start = place.stop
        capacity = len(self._complete)
        if start + size > capacity:
            wanted = max(_CAPACITY, capacity)
            while wanted < start + size:
                wanted *= 2
            self._following = np.pad(self._following, ((0, wanted - capacity), (0, 0)))
            self._complete = np.pad(self._complete, (0, wanted - capacity))
        return start

    def _upload(self) -> None:
        self._table = StopTable(self._spellings, everywhere(self._following), everywhere(self._complete))


def automaton(stop: StopSet) -> tuple[np.ndarray, np.ndarray]:
    """(next node int32 [nodes, 256], whether a string ends there bool [nodes]) of Aho and Corasick, 1975; root 0.

    Raises:
        ValueError: For an empty string.
    """
    if not all(stop):
        raise ValueError("a stop string is empty: it would end every completion before it starts")
    tree: list[dict[int, int]] = [{}]
    complete = [False]
    for string in stop:
        node = 0
        for letter in string:
            if letter not in tree[node]:
                tree[node][letter] = len(tree)
                tree.append({})
                complete.append(False)
            node = tree[node][letter]
        complete[node] = True
    following = np.zeros((len(tree), 256), np.int32)
    shorter = [0] * len(tree)  # the node of the longest proper suffix that is in the tree
    queue = collections.deque([0])
    while queue:  # breadth first: rows of shorter strings are whole
        node = queue.popleft()
        complete[node] |= complete[shorter[node]]
        if node:
            following[node] = following[shorter[node]]
        for letter, child in tree[node].items():
            shorter[child] = int(following[shorter[node], letter]) if node else 0
            following[node, letter] = child
            queue.append(child)
    return following, np.array(complete)
