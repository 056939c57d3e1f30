"""Incremental text of a completion: bytes of tokens in, final text out."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence


class TextStream:
    """Text of one completion, up to its first stop string.

    The joined output is the text of all tokens, cut before the stop string that is completed first (of two at once, the
    longer one), whatever the boundaries of tokens. Text that may still become a stop string, and incomplete characters,
    are held back.

    Args:
        spellings: Bytes of each token, by id.
        stop: Stop strings.
    """

    def __init__(self, spellings: Sequence[bytes], stop: Sequence[str] = ()) -> None:
        self._spellings, self._stop = spellings, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, token_ids: Iterable[int], *, last: bool = False) -> str:
        """Return the text that the next tokens make final; with `last`, all remaining text."""
        spelled = b"".join(self._spelling(token) for token in token_ids)
        self._held += self._decoder.decode(spelled, last)
        places = ((stop, self._held.find(stop)) for stop in self._stop)
        if found := [(place + len(stop), place) for stop, place in places if place >= 0]:
            # The sampler ends with the token that completes a stop string.
            certain, self._held = self._held[: min(found)[1]], ""
            return certain
        keep = 0 if last else max((_begun(self._held, stop) for stop in self._stop), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def _spelling(self, token: int) -> bytes:
        return (
            self._spellings[token] if token < len(self._spellings) else b""
        )  # The model may have more rows than the tokenizer has ids.


def _begun(text: str, stop: str) -> int:
    """Return the number of characters at the end of `text` that may begin `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
