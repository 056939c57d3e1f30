"""Which prompt stands in which row: each once for its samples, found by what it begins with."""

import numpy as np

from mlagent_jax.sampling import SamplerConfig
from mlagent_jax.sampling.rows import Rows

CONFIG = SamplerConfig(max_new_tokens=4, slots=8, samples=3, shared_prefix=4)


def taken(rows, tokens, count=1):
    """(slots, rows, whether the prompt was new) of each."""
    found = [rows.take(rows.prompt(tokens)) for _ in range(count)]
    for seated in found:
        if seated and seated[2]:
            rows.show(seated[1])
    return [seated and (seated[0], seated[1].index, seated[2]) for seated in found]


def test_samples_share_a_row_and_a_prompt_that_stands_there_is_not_new():
    rows = Rows(CONFIG, 1)
    assert len(rows) == 4, "three for eight slots, and one more"
    assert taken(rows, (1, 2), 4) == [(0, 0, True), (1, 0, False), (2, 0, False), (3, 1, True)]
    holder = rows.row(3)
    assert rows.longest_shared(holder) == (rows.row(0), 2), "more samples than columns: a copy of all of it"
    assert taken(rows, (3,)) == [(4, 2, True)]
    rows.leave(4)
    assert taken(rows, (5,)) == [(4, 3, True)], "an empty row before one that somebody may want"
    assert taken(rows, (3,)) == [(5, 2, False)]
    assert taken(rows, (6,)) == [None], "a slot is free, and no row"
    for slot in (5, 4):
        rows.leave(slot)
    assert taken(rows, (6,)) == [(4, 2, True)], "of those that nobody reads the one left first"
    assert taken(rows, (5,)) == [(5, 3, False)]


def test_groups_say_who_reads_what_within_each_share_of_a_mesh():
    rows = Rows(CONFIG, 2)
    assert len(rows) == 6, "two for four slots and one more, on each share"
    for tokens, count in (((1, 2, 3), 3), ((4, 5), 2), ((6,), 1)):
        taken(rows, tokens, count)
    running = sorted(slot for slot in range(8) if slot in rows._of)
    groups = rows.groups(running)
    for slot in running:
        row, share = rows.row(slot), slot // 4
        assert row.shard == share == row.index // 3
        place = groups.places[slot]
        assert share * 3 + place // 3 == row.index
        assert groups.members[row.index, place % 3] == slot % 4
        assert groups.lengths[row.index] == len(row.prompt)
    assert sorted(groups.lengths) == [0, 0, 0, 1, 2, 3]
    assert not rows.groups([]).lengths.any(), "what nobody decodes is not read"


def test_the_longest_beginning_is_found_and_checked_token_by_token():
    rows = Rows(CONFIG, 1)
    base = tuple(range(20))
    for tokens in (base, (*base[:9], 50, 51), (9, *base[1:])):
        taken(rows, tokens)
    slot, row, new = rows.take(rows.prompt((*base[:14], 60, 61)))
    assert new and rows.longest_shared(row) == (rows.row(0), 14)
    rows.forget(rows.row(0))
    assert rows.longest_shared(row) == (rows.row(1), 9)
    rows.leave(slot)
    slot, row, new = rows.take(rows.prompt(base[:3]))
    assert rows.longest_shared(row) == (None, 0), "too little to be worth it"


def test_a_prompt_is_hashed_once_while_it_is_wanted(monkeypatch):
    rows = Rows(CONFIG, 1)
    tokens = tuple(range(100))
    first = rows.prompt(tokens)
    assert rows.prompt(tuple(list(tokens))) is first and len(first.marks) == 25
    del first
    assert not rows._known, "and forgotten with its last request"
    np.testing.assert_array_equal(rows.prompt(tokens).tokens, tokens)
