"""Standard output and error of a script: bounded, head and tail kept, the rest drained so that the script goes on."""

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
        """What was kept, as text; bytes that are not UTF-8 are replaced, and a cut says how much is missing."""
        tail = bytes(self._tail[max(0, len(self._tail) - self._tail_room) :])
        missing = self._seen - len(self._head) - len(tail)
        cut = f"\n[... {missing} bytes cut ...]\n".encode() if missing else b""
        return (bytes(self._head) + cut + tail).decode("utf-8", errors="replace")
