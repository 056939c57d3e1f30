"""Bounded capture of a script's output: head and tail are kept, the rest is drained so that the script can go on."""

from __future__ import annotations


class Capture:
    """Collects one stream up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._head_room = max_bytes - max_bytes // 2
        self._tail_room = max_bytes // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._seen = 0

    def feed(self, chunk: bytes) -> None:
        self._seen += len(chunk)
        room = self._head_room - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        if len(chunk) >= self._tail_room:
            self._tail[:] = chunk[len(chunk) - self._tail_room :]
        elif chunk:
            self._tail += chunk
            if len(self._tail) > 2 * self._tail_room:  # trimmed in large steps: 200 MB in small chunks stay linear
                del self._tail[: len(self._tail) - self._tail_room]

    def text(self) -> str:
        """Return the kept bytes as text. Invalid UTF-8 is replaced, and a cut shows the number of missing bytes."""
        tail = bytes(self._tail[max(0, len(self._tail) - self._tail_room) :])
        missing = self._seen - len(self._head) - len(tail)
        cut = f"\n[... {missing} bytes cut ...]\n".encode() if missing else b""
        return (bytes(self._head) + cut + tail).decode("utf-8", errors="replace")
