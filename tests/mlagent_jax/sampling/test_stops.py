"""Stop strings end a completion with the token that completes the first of them, wherever tokens are cut."""

import random

import pytest

from mlagent_jax.sampling import Request
from mlagent_jax.sampling.stops import StopFinder
from mlagent_jax.sampling.text import TextStream


def first_end(text, stop):
    """Bytes of `text` up to where a stop string is complete for the first time, None if none is."""
    ends = [text.find(string) + len(string) for string in stop if string in text]
    return min(ends, default=None)


def test_the_token_that_completes_the_first_string_is_found_wherever_tokens_are_cut():
    rng = random.Random(0)
    found = 0
    for _ in range(500):
        stop = tuple(bytes(rng.choices(b"ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3)))
        spellings = [bytes(rng.choices(b"ab", k=rng.randint(0, 3))) for _ in range(8)]
        tokens, finder, taken, count = [*range(8), 99], StopFinder(spellings, stop), 0, None
        while taken < len(tokens) and count is None:
            size = rng.randint(1, 4)
            part = finder.feed(tokens[taken : taken + size])
            count = None if part is None else taken + part
            taken += size
        end = first_end(b"".join(spellings), stop)
        ends = [len(b"".join(spellings[: number + 1])) for number in range(8)]
        assert count == (None if end is None else next(n for n, e in enumerate(ends, 1) if e >= end)), (stop, spellings)
        found += end is not None
    assert 150 < found < 500


def test_a_character_whose_bytes_two_tokens_share_is_found():
    spellings = [b"Ob", b"serva", b"tion:", "n\u00e9".encode()[:2], "n\u00e9".encode()[2:]]
    finder = StopFinder(spellings, ("n\u00e9".encode(), b"Observation:"))
    assert [finder.feed([token]) for token in (0, 1, 3)] == [None, None, None]
    assert finder.feed([4, 0]) == 1


@pytest.mark.parametrize("stop", [(b"",), (b"a", b"")])
def test_an_empty_string_is_refused(stop):
    with pytest.raises(ValueError, match="empty"):
        Request(0, (1,), 1, stop=stop).check(4, 4, 4)


def test_streamed_text_is_certain_and_ends_before_the_stop_string():
    rng = random.Random(1)
    text = "aé🎉 Observ Observation: b"
    for _ in range(100):
        raw = text.encode()
        cuts = sorted(rng.sample(range(1, len(raw)), 8))
        spellings = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        stream, given = TextStream(spellings, ["Observation:", "vat"]), ""
        for token in range(len(spellings)):
            given += stream.feed([token], last=token == len(spellings) - 1)
            assert "aé🎉 Observ Obser".startswith(given)
            if b"vat" in b"".join(spellings[: token + 1]):
                break
        assert given == "aé🎉 Observ Obser"
    stream = TextStream([b"Obs\xc3"], ["Observation:"])
    assert stream.feed([0]) == "" and stream.feed([], last=True) == "Obs\N{REPLACEMENT CHARACTER}"
