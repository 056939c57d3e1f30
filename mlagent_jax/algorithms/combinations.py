"""Combinations of RL choices: each is derived, and verified by enumeration in a test, or refused here.

The objective is (1 - w) E[r] + w E[max of k] - beta KL(pi || pi_ref); the last term only if the KL is in the reward. A
combination counts as derived in one of two senses:

    exact      the expected gradient is a positive multiple of the objective's
    in batch   the same, except for a bias that falls as 1 / states, because the mean and the deviation of a batch
               include the action's own reward. Only normalisation `batch` is of this kind, as in PPO and REINFORCE++.

GRPO's division by a group's deviation weights states by the variation of their rewards. If rewards have two values, the
expected gradient of a state is a positive multiple of the objective's. In general GRPO has an objective of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

FALLBACK = ("none", "group", "batch")
NORMALISED: Mapping[str, Sequence[str]] = {
    "gae": ("batch", "none"),
    "grpo": ("group", "none", "batch"),
    "rloo": ("none", "batch"),
    "opo": ("none", "batch"),
    "reinforce_plus_plus": ("batch", "none"),
    "reinforce_plus_plus_baseline": ("batch", "none"),
    "single_stream": ("batch", "none"),
}
"""Allowed normalisations of each estimator, its own first; `FALLBACK` for an estimator that a user added."""
COMPARES = ("grpo", "rloo", "opo", "reinforce_plus_plus_baseline")
"""Estimators that compare the actions of one state."""
INCLUDES_OWN = ("grpo", "reinforce_plus_plus_baseline")
"""Estimators whose baseline includes the action's own reward, which shrinks the gradient by (n - 1) / n."""


def own_normalisation(estimator: str) -> str:
    """Return the normalisation with which the estimator was published."""
    return NORMALISED.get(estimator, FALLBACK)[0]


def refusal(
    *,
    estimator: str,
    normalisation: str,
    best_of: int,
    kl_in: str,
    kl_estimator: str,
    kl_coefficient: float,
    rollout: str,
    samples: int,
    critic: str,
) -> str | None:
    """Return why the choices do not work together, with the remedy in terms of config fields; None if they do."""
    if normalisation not in (allowed := NORMALISED.get(estimator, FALLBACK)):
        return (
            f"normalisation is {normalisation!r} and estimator {estimator!r}, for which that is not derived: choose "
            f"{' or '.join(allowed)}"
        )
    if estimator in COMPARES and samples < 2:
        return (
            f"samples is {samples} and estimator {estimator!r}, which compares actions of one state: its "
            "advantages would all be 0. Raise samples, or use single_stream, gae or reinforce_plus_plus"
        )
    if estimator in COMPARES and rollout == "episode":
        return (
            f"rollout is 'episode' and estimator {estimator!r}: the steps of an episode share its reward, and the "
            "baseline of each would hold it. Use gae or reinforce_plus_plus"
        )
    if best_of > 1 and rollout == "episode":
        return (
            f"best_of is {best_of} and rollout 'episode': the best of k is derived for single actions from one "
            "state. Set best_of to 1"
        )
    if best_of > 1 and estimator in INCLUDES_OWN:
        return (
            f"best_of is {best_of} and estimator {estimator!r}: the baseline of the mean reward shrinks it by "
            "(n - 1) / n against the best of k. Use rloo, which leaves the action out"
        )
    if kl_in == "reward" and kl_coefficient and kl_estimator != "k1":
        return (
            f"kl_estimator is {kl_estimator!r} and kl_in 'reward', where only k1 has the gradient of the KL: use "
            "k1, or kl_in='loss'"
        )
    if kl_in == "reward" and kl_coefficient and normalisation == "group":
        return (
            "kl_in is 'reward' and normalisation 'group': the deviation of a group would hold the KL, which no "
            "coefficient weighs any more. Use kl_in='loss' or normalisation='none'"
        )
    if kl_in == "loss" and kl_coefficient and kl_estimator == "k1":
        return (
            "kl_estimator is 'k1' and kl_in 'loss': its gradient there is 0 on average; use 'k2', 'k3' or 'unbiased', "
            "or kl_in='reward'"
        )
    if critic == "separate" and estimator != "gae" and estimator in NORMALISED:
        return f"critic is 'separate' and estimator {estimator!r}, which reads no critic: set critic to 'head'"
    return None
