"""Every combination of estimator, normalisation, best of k, place of the KL and rollout is proved or refused.

Proved by enumeration: a policy over actions of one or two tokens, so that lengths depend on the action; all joint draws
of a group are summed, each weighed by its probability. The expected gradient must be that of

    (1 - w) E[r] + w E[max of k] - beta KL(pi || pi_ref)
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.algorithms.combinations import COMPARES, NORMALISED, refusal
from mlagent_jax.algorithms.estimators import ESTIMATORS, NORMALISATIONS, Rewards, normalise, place_on_last
from mlagent_jax.algorithms.kl import KL_KINDS, kl
from mlagent_jax.algorithms.max_at_k import best_of

ACTIONS = ((0,), (1, 0), (1, 1))
"""Tokens: 0 ends the action at once, 1 is followed by another."""
WORTH = np.array([0.2, 1.0, -0.7])
LOGITS = np.array([[0.3, -0.8], [0.1, 0.6]])
"""[place, token]: the second row is for the second token."""
REFERENCE = np.array([[-0.2, 0.5], [0.4, -0.3]])


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def token_log_probs(logits):
    """[action, place], 0 where there is no token."""
    table = log_softmax(logits)
    return np.array([[table[t, a[t]] if t < len(a) else 0.0 for t in range(2)] for a in ACTIONS])


MASK = np.array([[t < len(a) for t in range(2)] for a in ACTIONS])
PROBS = np.exp(token_log_probs(LOGITS).sum(axis=1))
SCORES = np.array(
    [
        [(np.eye(2)[a[t]] - np.exp(log_softmax(LOGITS)[t])) * np.eye(2)[t][:, None] if t < len(a) else np.zeros((2, 2))
         for t in range(2)]
        for a in ACTIONS
    ]
)  # fmt: skip
"""Gradient of each token's log-prob by the logits, [action, place, 2, 2]."""


def exact_gradient(k, weight, beta, worth=WORTH):
    """By finite differences of the objective, itself summed over all draws of k."""

    def objective(logits):
        log_probs = token_log_probs(logits)
        probs = np.exp(log_probs.sum(axis=1))
        draws = [list(draw) for draw in itertools.product(range(3), repeat=k)]
        best = sum(np.prod(probs[draw]) * worth[draw].max() for draw in draws)
        divergence = probs @ (log_probs - token_log_probs(REFERENCE)).sum(axis=1)
        return (1 - weight) * probs @ worth + weight * best - beta * divergence

    gradient = np.zeros((2, 2))
    for place in itertools.product(range(2), repeat=2):
        step = np.zeros((2, 2))
        step[place] = 1e-5
        gradient[place] = (objective(LOGITS + step) - objective(LOGITS - step)) / 2e-5
    return gradient


def expected_gradient(
    estimator, normalisation="none", k=1, weight=0.0, beta=0.0, kind="k1", n=3, states=1, worth=WORTH, critic=0.0
):
    """Of the sum over tokens of A * log pi, a group's mean: what the aggregation `constant` takes."""
    worth = np.asarray(worth, np.float32)
    log_probs = jnp.asarray(token_log_probs(LOGITS), jnp.float32)
    divergence = jnp.where(MASK, kl(log_probs, jnp.asarray(token_log_probs(REFERENCE), jnp.float32), kind), 0.0)
    groups, choice = jnp.repeat(jnp.arange(states), n), ESTIMATORS.choose(estimator)

    def advantages(draw):
        mask, rewards = jnp.asarray(MASK)[draw], jnp.asarray(worth)[draw]
        penalty = beta * divergence[draw]
        mean_part = (1 - weight) * rewards
        added = weight * k * best_of(rewards, groups, jnp.ones(len(draw), bool), k)
        batch = Rewards(
            rewards=mean_part - jnp.sum(penalty, axis=1),
            added=added,
            token_rewards=place_on_last(mean_part + added, mask) - penalty,
            values=jnp.full(mask.shape, critic),
            mask=mask,
            groups=groups,
            baselines=jnp.full(len(draw), 0.4),
        )
        return normalise(choice(batch)[0], batch, normalisation)

    draws = np.array(list(itertools.product(range(3), repeat=n * states)))
    found = np.asarray(jax.jit(jax.vmap(advantages))(jnp.asarray(draws)), np.float64)
    chances = PROBS[draws].prod(axis=1)
    return np.einsum("d,dit,ditab->ab", chances, found, SCORES[draws]) / (n * states)


def error(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def direction(found, wanted):
    return np.sum(found * wanted) / np.linalg.norm(found) / np.linalg.norm(wanted)


EXACT = ("gae", "rloo", "opo", "reinforce_plus_plus", "single_stream")
BEST = [(1, 0.0), (2, 1.0), (3, 0.5)]


@pytest.mark.parametrize("beta", [0.0, 0.3], ids=["no KL", "KL in the reward"])
@pytest.mark.parametrize(("k", "weight"), BEST)
@pytest.mark.parametrize("estimator", EXACT)
def test_the_expected_gradient_is_the_objectives(estimator, k, weight, beta):
    found = expected_gradient(estimator, k=k, weight=weight, beta=beta, critic=0.35)
    assert error(found, exact_gradient(k, weight, beta)) < 1e-4


@pytest.mark.parametrize("estimator", ["grpo", "reinforce_plus_plus_baseline"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_a_baseline_with_the_action_in_it_shrinks_the_gradient_and_turns_it_nowhere(estimator, beta):
    assert error(expected_gradient(estimator, beta=beta) * 3 / 2, exact_gradient(1, 0.0, beta)) < 1e-4


@pytest.mark.parametrize("n", [2, 3, 4])
def test_grpos_deviation_keeps_the_direction_for_two_rewards(n):
    worth = np.array([0.0, 1.0, 0.0])
    found = expected_gradient("grpo", "group", n=n, worth=worth)
    assert direction(found, exact_gradient(1, 0.0, 0.0, worth)) > 1 - 1e-6


CHOICES = {
    "estimator": "gae",
    "normalisation": "batch",
    "best_of": 1,
    "kl_in": "loss",
    "kl_estimator": "k2",
    "kl_coefficient": 0.1,
    "rollout": "step",
    "samples": 4,
    "critic": "head",
}


def in_the_batch():
    """(estimator, k, weight) of all that normalisation by batch is not refused with."""
    for estimator in sorted(NORMALISED):
        for k, weight in ((1, 0.0), (2, 0.5)):
            if not refusal(**CHOICES | {"estimator": estimator, "normalisation": "batch", "best_of": k}):
                yield estimator, k, weight


@pytest.mark.parametrize(("estimator", "k", "weight"), list(in_the_batch()))
def test_the_bias_of_a_batchs_normalisation_falls_with_the_number_of_states(estimator, k, weight):
    wanted = exact_gradient(k, weight, 0.0)
    off = [
        1 - direction(expected_gradient(estimator, "batch", k=k, weight=weight, n=2, states=states), wanted)
        for states in (1, 4)
    ]
    if k == 1:
        assert max(off) < 0.002, "it hardly turns the gradient at all"
    else:
        assert off[1] < off[0] / 4


def test_every_combination_that_is_not_refused_is_among_those_that_are_proved():
    """What the tests above prove, against what a config may ask for."""
    for estimator, normalisation, k, kl_in, kind, rollout, samples in itertools.product(
        NORMALISED, NORMALISATIONS, (1, 3), ("loss", "reward"), KL_KINDS, ("step", "episode"), (1, 4)
    ):
        if k > samples:
            continue
        chosen = CHOICES | {
            "estimator": estimator,
            "normalisation": normalisation,
            "best_of": k,
            "kl_in": kl_in,
            "kl_estimator": kind,
            "rollout": rollout,
            "samples": samples,
        }
        centred = estimator in ("grpo", "reinforce_plus_plus_baseline")
        proved = (
            (estimator in EXACT or (centred and k == 1))  # the baseline
            and (normalisation != "group" or (estimator == "grpo" and kl_in == "loss"))
            and (kind == "k1" if kl_in == "reward" else kind != "k1")
            # One action has nobody to be compared with; a critic and a tracked value need nobody.
            and not (estimator in COMPARES and (samples == 1 or rollout == "episode"))
            and not (k > 1 and rollout == "episode")
        )
        assert (refusal(**chosen) is None) == proved, (chosen, refusal(**chosen))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"estimator": "grpo", "normalisation": "none", "best_of": 2}, "Use rloo"),
        ({"estimator": "rloo", "normalisation": "group"}, "choose none or batch"),
        (
            {"estimator": "grpo", "normalisation": "group", "kl_in": "reward", "kl_estimator": "k1"},
            "normalisation='none'",
        ),
        ({"kl_in": "reward", "kl_estimator": "k3"}, "use k1"),
        ({"estimator": "rloo", "normalisation": "none", "rollout": "episode"}, "Use gae"),
        ({"best_of": 2, "rollout": "episode"}, "Set best_of to 1"),
        ({"estimator": "opo", "normalisation": "none", "samples": 1}, "single_stream"),
        ({"estimator": "grpo", "normalisation": "group", "critic": "separate"}, "set critic to 'head'"),
    ],
)
def test_a_refusal_names_the_fields_and_the_remedy(changed, reason):
    said = refusal(**CHOICES | changed)
    assert reason in said and said.split(" ")[0] in CHOICES


def test_what_is_refused_is_biased():
    """The reasons, measured: each of these would be off by so much."""
    plain = exact_gradient(3, 0.5, 0.0)
    assert error(expected_gradient("grpo", k=3, weight=0.5), plain) > 0.1
    assert direction(expected_gradient("rloo", "group", k=3, weight=0.5), plain) < 1 - 1e-4
    for kind in ("k2", "k3"):
        wrong = expected_gradient("gae", beta=0.3, kind=kind)
        assert error(wrong, exact_gradient(1, 0.0, 0.3)) > 0.02, kind
