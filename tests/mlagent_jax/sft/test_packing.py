"""Packed rows say the same as the samples they are made of."""

import numpy as np
import pytest

from mlagent_jax.sft.packing import Sample, pack


def random_samples(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Sample(tuple(rng.integers(3, 99, rng.integers(1, 30))), tuple(rng.integers(3, 99, rng.integers(1, 12))))
        for _ in range(count)
    ]


def test_every_sample_is_found_again_with_its_action_as_the_only_target():
    samples, found = random_samples(50), []
    rows = pack(samples, row_tokens=64, pad_id=0)
    for r in range(len(rows)):
        for segment in range(1, rows.segment_ids[r].max() + 1):
            at = np.flatnonzero(rows.segment_ids[r] == segment)
            assert np.array_equal(rows.positions[r][at], np.arange(len(at)))
            learned = at[rows.mask[r][at]]
            prompt = rows.tokens[r][at[: len(at) - len(learned)]]
            found.append(Sample(tuple(prompt), tuple(rows.targets[r][learned])))
    assert sorted(found, key=repr) == sorted(samples, key=repr)


def test_targets_are_the_next_tokens_and_never_cross_a_segment():
    rows = pack(random_samples(40, seed=1), row_tokens=64, pad_id=0)
    r, t = np.nonzero(rows.mask)
    assert np.array_equal(rows.targets[r, t], rows.tokens[r, t + 1])
    assert np.array_equal(rows.segment_ids[r, t], rows.segment_ids[r, t + 1])


def test_padding_has_no_segment_and_no_target():
    rows = pack([Sample((5, 6), (7,))], row_tokens=8, pad_id=0)
    assert rows.segment_ids.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert rows.mask.tolist() == [[False, True, False, False, False, False, False, False]]


def test_rows_are_well_filled():
    samples = random_samples(400, seed=2)
    rows = pack(samples, row_tokens=256, pad_id=0)
    assert sum(map(len, samples)) / rows.tokens.size > 0.9


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="9 tokens does not fit a row of 8"):
        pack([Sample((1,) * 8, (2,))], row_tokens=8, pad_id=0)
