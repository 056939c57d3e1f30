"""The text of a completion while it is being made: bytes of tokens in, text that will not change out."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence


class TextStream:
    """Text of one completion, up to its first stop string.

    What comes out, joined, is the text of all tokens, cut before the stop string that is complete first (of two at
    once, before the longer one), wherever tokens begin and end. Text that may still become a stop string, and bytes
    that are no whole character yet, are held back.

    Args:
        spellings: Bytes of each token, by id.
        stop: Stop strings.
    """

    def __init__(self, spellings: Sequence[bytes], stop: Sequence[str] = ()) -> None:
        self._spellings, self._stop = spellings, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, token_ids: Iterable[int], *, last: bool = False) -> str:
        """Text that the next tokens make certain; with `last` all that is left."""
        spelled = b"".join(self._spelling(token) for token in token_ids)
        self._held += self._decoder.decode(spelled, last)
        places = ((stop, self._held.find(stop)) for stop in self._stop)
        if found := [(place + len(stop), place) for stop, place in places if place >= 0]:
            # The sampler ends with the token that completes a stop string: nothing follows.
            certain, self._held = self._held[: min(found)[1]], ""
            return certain
        keep = 0 if last else max((_begun(self._held, stop) for stop in self._stop), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def _spelling(self, token: int) -> bytes:
        return self._spellings[token] if token < len(self._spellings) else b""  # rows beyond the tokenizer's ids


def _begun(text: str, stop: str) -> int:
    """Characters at the end of `text` that may be the start of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
