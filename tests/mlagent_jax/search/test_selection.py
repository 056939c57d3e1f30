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
    assert chosen.optimism[64] > chosen.optimism[8] > abs(chosen.optimism[1]) - 0.02
    assert chosen.corrected < chosen.apparent
    assert "due to choosing among 64 candidates" in chosen.warning


def test_the_estimate_is_near_the_true_optimism_on_fresh_rows(answers):
    """Over many draws of 32 equal candidates: the gain on the half that chose, less that on the other half."""
    true, said = [], []
    for seed in range(12):
        rng = np.random.default_rng(100 + seed)
        noises = rng.normal(scale=0.98, size=(32, ROWS))
        scores = np.sqrt(np.stack([(noises[:, rows] ** 2).mean(axis=1) for rows in (~answers.report, answers.report)]))
        best = int(np.argmin(scores[0]))
        true.append(scores[1, best] - scores[0, best])
        said.append(estimated(answers, [submission(answers.truth + noise) for noise in noises]).optimism[32])
    assert np.mean(said) == pytest.approx(np.mean(true), abs=0.06)


def test_one_clear_winner_is_not_called_chance(answers):
    chosen = estimated(answers, [*candidates(answers, 5, noise=0.9), submission(answers.truth + 0.01)])
    assert not chosen.warning
    assert chosen.corrected == pytest.approx(chosen.apparent, abs=0.06)
    assert chosen.noise < 0.2


def test_a_grader_without_parts_gives_no_estimate():
    assert estimate(["a"], SCALE, lambda name: None) is None
    assert estimate([], SCALE, lambda name: [[1.0, 1.0]]) is None
