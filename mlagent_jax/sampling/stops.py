"""Stop strings, decided on the host after each call of the decoding program.

The device knows stop tokens alone. A string may lie across tokens, so its bytes are searched for in those of the drawn
tokens (`Tokenizer.spellings`); UTF-8 synchronises itself, so that bytes are found where the text has the string, and
nowhere else. What the device drew after the token that completes a string is thrown away: at most `steps_per_call`
tokens of one request. In exchange programs have nothing of stop strings: no string compiles one or takes device memory.
"""

from __future__ import annotations

from collections.abc import Sequence

StopSet = tuple[bytes, ...]


class StopFinder:
    """Finds the token of one completion that completes the first of its stop strings.

    Args:
        spellings: Bytes of each token, by id; ids beyond spell nothing.
        stop: UTF-8 strings, none of them empty.
    """

    def __init__(self, spellings: Sequence[bytes], stop: StopSet) -> None:
        self._spellings, self._stop = spellings, stop
        self._longest = max(map(len, stop), default=1)
        self._tail = b""
        """The last bytes, which may be the start of a stop string."""

    def feed(self, token_ids: Sequence[int]) -> int | None:
        """Read the next tokens; returns how many of them there are up to the end of a stop string, None without one."""
        known = len(self._spellings)
        pieces = [self._spellings[token] if token < known else b"" for token in token_ids]
        text = self._tail + b"".join(pieces)
        ends = [place + len(string) for string in self._stop if (place := text.find(string)) >= 0]
        if not ends:
            self._tail = text[max(0, len(text) - self._longest + 1) :]
            return None
        left = min(ends) - len(self._tail)
        for count, piece in enumerate(pieces, start=1):
            left -= len(piece)
            if left <= 0:
                return count
        raise AssertionError("a stop string ends in what was read before")
