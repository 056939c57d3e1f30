"""The part of a gain that is chance: against plain loops, on candidates that are all equally good."""

import numpy as np
import pytest

from environments.protocol import Scale
from environments.tasks.grading import metrics
from environments.tasks.grading.submissions import Answers
from mlagent_jax.search.selection import estimate

ROWS = 240
SCALE = Scale(m_init=1.0, m_best=0.0, higher_is_better=False)


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(0)
    return Answers(metrics.get("rmse"), 0, rng.normal(size=ROWS), rng.random(ROWS) < 0.5)


def submission(values) -> bytes:
    return ("id,value\n" + "".join(f"{row},{value:.6f}\n" for row, value in enumerate(values))).encode()


def candidates(answers, count, noise=0.5):
    """Submissions that are equally good, up to chance."""
    rng = np.random.default_rng(1)
    return [submission(answers.truth + rng.normal(scale=noise, size=ROWS)) for _ in range(count)]


def estimated(answers, tables):
    start = submission(answers.truth + np.random.default_rng(9).normal(scale=1.0, size=ROWS))
    known = {str(number): table for number, table in enumerate(tables)} | {None: start}
    return estimate(
        [str(number) for number in range(len(tables))], SCALE, lambda name: answers.resampled(known[name], 100, 0)
    )


def test_samples_are_of_the_reward_half_and_scored_by_the_metric(answers):
    table = candidates(answers, 1)[0]
    pairs = answers.resampled(table, 20, 3)
    assert pairs == answers.resampled(table, 20, 3)
    prediction = np.array([float(line.split(",")[1]) for line in table.decode().splitlines()[1:]])
    rng, reward = np.random.default_rng(3), np.flatnonzero(~answers.report)
    for inside, outside in pairs:
        drawn = rng.choice(reward, len(reward))
        left = [row for row in reward if row not in set(drawn)]
        for rows, score in ((drawn, inside), (left, outside)):
            errors = [(prediction[row] - answers.truth[row]) ** 2 for row in rows]
            assert score == pytest.approx((sum(errors) / len(errors)) ** 0.5, rel=1e-9)


def test_choosing_among_many_equal_candidates_is_optimistic_and_says_so(answers):
    chosen = estimated(answers, candidates(answers, 64, noise=0.98))
    numbers = sorted(chosen.optimism)
    assert numbers == [1, 2, 4, 8, 16, 32, 64]
    assert chosen.optimism[64] > chosen.optimism[8] > 0
    assert chosen.corrected < chosen.apparent
    assert "due to choosing among 64 candidates" in chosen.warning


def test_candidates_that_are_no_better_than_the_start_have_a_corrected_gain_of_zero():
    """The mean over many searches with 20 candidates each, whose gains are nothing but chance."""

    def corrected(seed, rows=120, count=20):
        rng = np.random.default_rng(seed)
        errors = rng.normal(size=(count + 1, rows)) ** 2

        def resampled(name):
            draws = np.random.default_rng([seed, 1]).integers(rows, size=(100, rows))
            own = errors[0 if name is None else int(name)]
            return [[own[drawn].mean(), np.delete(own, drawn).mean()] for drawn in draws]

        found = estimate([str(number) for number in range(1, count + 1)], SCALE, resampled)
        return found.apparent, found.corrected

    apparent, mended = np.mean([corrected(seed) for seed in range(40)], axis=0)
    assert apparent > 0.2
    assert mended == pytest.approx(0.0, abs=0.035)


def test_one_clear_winner_is_not_called_chance(answers):
    chosen = estimated(answers, [*candidates(answers, 5, noise=0.9), submission(answers.truth + 0.01)])
    assert not chosen.warning
    assert chosen.corrected == pytest.approx(chosen.apparent, abs=0.06)
    assert chosen.noise < 0.2


def test_a_grader_without_parts_gives_no_estimate():
    assert estimate(["a"], SCALE, lambda name: None) is None
    assert estimate([], SCALE, lambda name: [[1.0, 1.0]]) is None
