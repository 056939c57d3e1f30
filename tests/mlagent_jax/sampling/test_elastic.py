"""A batch that grows with what is wanted of it, and gives what one of fixed size gives."""

import numpy as np
import pytest

from mlagent_jax.sampling import Distribution, Request, Sampler, load
from mlagent_jax.sampling.batch import _sizes


@pytest.fixture(scope="module")
def sampler(speaker):
    return Sampler(*load(speaker))


def run(batch, requests, late=()):
    """(tokens and reasons by request, sizes that were seen)."""
    tokens, reasons, sizes = {}, {}, []
    batch.submit(requests)
    while batch.busy:
        for progress in batch.step():
            tokens.setdefault(progress.id, []).extend(progress.token_ids)
            reasons[progress.id] = progress.finish_reason
        sizes.append(batch._config.slots)
        batch.submit(late)
        late = ()
    return tokens, reasons, sizes


def test_sizes_are_few_and_end_with_all():
    assert _sizes(256) == (1, 4, 16, 64, 256)
    assert _sizes(6) == (1, 4, 6)
    assert _sizes(1) == (1,)


def test_slots_follow_the_requests_and_change_none_of_them(sampler):
    rng = np.random.default_rng(0)
    requests = [
        Request(place, tuple(rng.integers(2, 200, 5 + place).tolist()), 20, seed=place, distribution=Distribution(0.5))
        for place in range(7)
    ]
    fixed = run(sampler.batch(60, 64, 8), requests)
    batch = sampler.batch(60, 64, 8, elastic=True)
    alone = run(batch, requests[:1])
    assert set(alone[2]) == {1}
    # The others come while the first runs: it moves to a larger state in the middle of its completion.
    tokens, reasons, sizes = run(batch, requests[1:2], requests[2:])
    assert max(sizes) == 8
    assert {**alone[0], **tokens} == fixed[0] and {**alone[1], **reasons} == fixed[1]
    again = run(batch, requests[:1])
    assert set(again[2]) == {1} and again[0] == alone[0], "an idle one is small again"
