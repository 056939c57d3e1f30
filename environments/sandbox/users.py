"""User ids of the host for executions: one for each, so that no per-user limit of the kernel is shared.

Descriptors in flight, watches, pipe buffers and others are counted per user of the host, whatever its namespace. A
sandbox has a block of ids that no other on this host has, and lends one to each execution.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import random
import socket
from collections.abc import Iterator
from pathlib import Path

BLOCK = 256
"""Number of ids of one sandbox; it can run one execution fewer concurrently."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Ids that hosts leave unused."""

    first: int
    blocks: int


WIDE = Range(1_900_000_000, 400_000)
"""Ids above those of containers and directories (systemd's table of ids), below 2^31."""
NARROW = Range(64_000, 5)
"""Ids to use if this process has only the usual 65,536: in a user namespace, or with an engine in one."""


class Users:
    """A block of ids. The first is the sandbox's own; `lease` lends the others, the longest unused first."""

    def __init__(self, first: int, claim: socket.socket) -> None:
        self.first = first
        self._claim = claim
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for offset in range(1, BLOCK):
            self._free.put(offset)

    @contextlib.contextmanager
    def lease(self) -> Iterator[int]:
        """Yield an id, as its distance from the first, for exclusive use until the context ends."""
        offset = self._free.get()
        try:
            yield offset
        finally:
            self._free.put(offset)

    def close(self) -> None:
        self._claim.close()


def claim_users(candidates: Range | None = None) -> Users | None:
    """Claim a block of ids that no other sandbox on this host has; return None if there is none.

    The claim is a socket with the block's name, so it ends with its process, for any reason. Sandboxes in different
    network namespaces do not see each other's sockets, so the search starts at a random block.

    Args:
      candidates: ids to search; default: those of this process's user namespace.
    """
    candidates = candidates or next((each for each in (WIDE, NARROW) if _here(each)), None)
    if candidates is None:
        return None
    start = random.SystemRandom().randrange(candidates.blocks)
    for step in range(min(candidates.blocks, 1000)):
        block = (start + step) % candidates.blocks
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0mlagent-jax-users-{candidates.first}-{block}")
        except OSError:
            claim.close()
        else:
            return Users(candidates.first + block * BLOCK, claim)
    return None


def _here(candidates: Range) -> bool:
    """Check whether this process's user namespace has all these ids."""
    last = candidates.first + candidates.blocks * BLOCK
    lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    starts = ((int(inside), int(count)) for inside, _, count in map(str.split, lines))
    return any(start <= candidates.first and last <= start + count for start, count in starts)
