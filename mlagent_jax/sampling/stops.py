"""Stop strings, found on the host after each call of the decoding program.

The device handles stop tokens only. A string may span tokens, so its bytes are searched for in the bytes of the sampled
tokens (`Tokenizer.spellings`). UTF-8 is self-synchronising, so the bytes match exactly where the text has the string.
Tokens after the one that completes a string are discarded: at most `steps_per_call` tokens per request. In exchange,
stop strings need no compilation and no device memory.
"""

from __future__ import annotations

from collections.abc import Sequence

StopSet = tuple[bytes, ...]


class StopFinder:
    """Finds the token of one completion that completes the first of its stop strings.

    Args:
        spellings: Bytes of each token, by id; further ids have none.
        stop: UTF-8 strings, none of them empty.
    """

    def __init__(self, spellings: Sequence[bytes], stop: StopSet) -> None:
        self._spellings, self._stop = spellings, stop
        self._longest = max(map(len, stop), default=1)
        self._tail = b""
        """Last bytes so far, which may begin a stop string."""

    def feed(self, token_ids: Sequence[int]) -> int | None:
        """Read the next tokens; return their number up to the end of a stop string, or None."""
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
