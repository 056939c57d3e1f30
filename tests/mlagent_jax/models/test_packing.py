"""Packed rows say the same as the samples they are made of; a prompt stands once in its row."""

import numpy as np
import pytest

from mlagent_jax.models.packing import Sample, blocks, fill, first_fit, packed


def random_samples(count, seed=0):
    """Two in three share the prompt of the one before."""
    rng, samples = np.random.default_rng(seed), []
    for index in range(count):
        prompt = tuple(rng.integers(3, 99, rng.integers(1, 30))) if index % 3 == 0 else samples[-1].prompt
        samples.append(Sample(prompt, tuple(rng.integers(3, 99, rng.integers(1, 12)))))
    return samples


def pack(samples, row_tokens):
    return fill(samples, packed(blocks(samples, range(len(samples)), row_tokens), row_tokens), row_tokens, 0)


def seen_from(rows, r, t):
    """Positions of row r that position t attends to, in order."""
    own = rows.segment_ids[r] == rows.segment_ids[r, t]
    return np.flatnonzero((own | (rows.segment_ids[r] == rows.prompt_ids[r, t])) & (np.arange(len(own)) <= t))


def test_a_row_is_laid_out_as_the_module_says():
    rows = pack([Sample((5, 6, 7), (1, 2, 3)), Sample((5, 6, 7), (4, 8))], 8)
    assert rows.tokens.tolist() == [[5, 6, 7, 1, 2, 7, 4, 0]]
    assert rows.targets.tolist() == [[0, 0, 1, 2, 3, 4, 8, 0]]
    assert rows.mask.tolist() == [[False, False, True, True, True, True, True, False]]
    assert rows.segment_ids.tolist() == [[1, 1, 2, 2, 2, 3, 3, 0]]
    assert rows.prompt_ids.tolist() == [[1, 1, 1, 1, 1, 1, 1, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3, 0]]


def test_an_action_alone_is_one_segment_with_its_prompt():
    rows = pack([Sample((5, 6), (7,))], 8)
    assert rows.segment_ids.tolist() == rows.prompt_ids.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]


def test_every_token_sees_its_prompt_and_its_action_so_far_and_nothing_else():
    samples, found = random_samples(60), []
    rows = pack(samples, 64)
    for r in range(len(rows)):
        for segment in range(1, rows.segment_ids[r].max() + 1):
            decides = np.flatnonzero((rows.segment_ids[r] == segment) & rows.mask[r])
            if not len(decides):
                continue
            for t in decides:
                assert rows.positions[r, seen_from(rows, r, t)].tolist() == list(range(rows.positions[r, t] + 1))
            first = seen_from(rows, r, decides[0])
            found.append(Sample(tuple(rows.tokens[r, first]), tuple(rows.targets[r, decides])))
            last = seen_from(rows, r, decides[-1])
            assert tuple(rows.tokens[r, last]) == (*found[-1].prompt, *found[-1].action[:-1])
    assert sorted(found, key=repr) == sorted(samples, key=repr)


def test_prompts_are_shared_and_rows_well_filled():
    samples = random_samples(400, seed=2)
    rows = pack(samples, 256)
    used = (rows.segment_ids > 0).sum()
    assert used < 0.65 * sum(map(len, samples)) and used / rows.tokens.size > 0.9


def test_a_block_that_exceeds_a_row_is_split_and_a_sample_that_does_is_refused():
    samples = [Sample((1,) * 6, (2,) * 3)] * 4
    assert [block.members for block in blocks(samples, range(4), 11)] == [(0, 1), (2, 3)]
    assert [block.members for block in blocks(samples, [3, 0], 11, share=False)] == [(3,), (0,)]
    with pytest.raises(ValueError, match="9 tokens does not fit a row of 8"):
        blocks([Sample((1,) * 8, (2, 3))], [0], 8)


def test_first_fit_is_that_of_a_plain_search():
    lengths = np.random.default_rng(0).integers(1, 40, 200).tolist()
    rows, room = [], []
    for item, length in enumerate(lengths):
        row = next((r for r, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(64)
        rows[row].append(item)
        room[row] -= length
    assert first_fit(lengths, 64) == rows
