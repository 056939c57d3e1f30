"""Stop strings end a completion with the token that completes the first of them, wherever tokens are cut."""

import random

import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.sampling.stops import Spellings, StopSets, automaton
from mlagent_jax.sampling.text import TextStream


def first_end(text, stop):
    """Bytes of `text` up to where a stop string is complete for the first time, None if none is."""
    ends = [text.find(string) + len(string) for string in stop if string in text]
    return min(ends, default=None)


def test_the_automaton_finds_what_a_search_finds():
    rng = random.Random(0)
    found = 0
    for _ in range(300):
        stop = tuple(bytes(rng.choices(b"ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3)))
        text = bytes(rng.choices(b"ab", k=12))
        following, complete = automaton(stop)
        node, end = 0, None
        for place, letter in enumerate(text):
            node = following[node, letter]
            if complete[node]:
                end = place + 1
                break
        assert end == first_end(text, stop), (stop, text)
        found += end is not None
    assert 100 < found < 300


def test_a_slot_stops_with_the_token_that_completes_a_string_of_its_own():
    spellings = [b"", b"Ob", b"serva", b"tion:", b"x", "né".encode()[:2], "né".encode()[2:]]
    sets = StopSets(Spellings.of(spellings, 9))
    stops = [(), (b"Observation:",), ("né".encode(), b"xx")]
    roots = [sets.root(stop, in_use=stops) for stop in stops]
    nodes, ends = jnp.array(roots), []
    for token in (4, 1, 2, 5, 6, 3):
        nodes, ended = sets.table.follow(nodes, jnp.full((3,), token))
        ends.append(ended.tolist())
    assert ends[:4] == [[False] * 3] * 4
    assert ends[4] == [False, False, True], "the character whose bytes two tokens share"
    assert ends[5] == [False] * 3, "another text came between"
    for token in (1, 2, 3):
        nodes, ended = sets.table.follow(nodes, jnp.full((3,), token))
    assert ended.tolist() == [False, True, False]


def test_unused_sets_make_room_and_used_ones_stay_where_they_are():
    sets = StopSets(Spellings.of([b"a"], 1))
    kept = sets.root((b"kept",))
    size = sets.size
    for number in range(40):
        stop = (b"stop %d" % number,)
        root = sets.root(stop, in_use=[(b"kept",)])
        assert (kept, sets.size) == (sets.root((b"kept",)), size)
        np.testing.assert_array_equal(sets.table.following[root : root + len(stop[0]) + 1] - root, automaton(stop)[0])
    long = (b"z" * 200,)
    sets.root(long, in_use=[(b"kept",)])
    assert sets.root((b"kept",)) == kept and sets.size > 200


@pytest.mark.parametrize("stop", [(b"",), (b"a", b"")])
def test_an_empty_string_is_refused(stop):
    with pytest.raises(ValueError, match="empty"):
        automaton(stop)


def test_ids_alone_have_no_strings():
    with pytest.raises(ValueError, match="tokenizer"):
        StopSets().root((b"a",))


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
