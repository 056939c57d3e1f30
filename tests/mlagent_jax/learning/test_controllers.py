import json
import math

import pytest

from mlagent_jax.rl import kl


def test_a_fixed_coefficient_stays():
    controller = kl.FixedKL(0.05)
    assert controller.update(10.0) is controller


@pytest.mark.parametrize(
    ("observed", "error"),
    [(0.06, 0.2), (0.022, 0.1), (0.02, 0.0), (0.019, -0.05), (0.0, -0.2), (-1.0, -0.2)],
)
def test_an_adaptive_coefficient_follows_the_clipped_relative_error(observed, error):
    controller = kl.AdaptiveKL(coefficient=0.5, target=0.02)
    assert controller.update(observed).coefficient == pytest.approx(0.5 * (1 + 0.1 * error), rel=1e-12)


def test_feedback_brings_the_kl_to_its_target():
    controller = kl.AdaptiveKL(coefficient=1.0, target=0.1)
    for _ in range(500):
        controller = controller.update(0.02 / controller.coefficient)  # a policy that yields to the penalty
    assert 0.02 / controller.coefficient == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    "controller",
    [kl.FixedKL(0.0), kl.AdaptiveKL(coefficient=1 / 3, target=0.1).update(0.7)],
)
def test_controllers_survive_json_bit_by_bit(controller):
    assert kl.from_dict(json.loads(json.dumps(kl.to_dict(controller)))) == controller


@pytest.mark.parametrize("observed", [math.nan, math.inf])
def test_a_kl_that_is_not_finite_is_refused(observed):
    with pytest.raises(ValueError, match="observed KL"):
        kl.AdaptiveKL(coefficient=0.1, target=0.1).update(observed)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "pid", "coefficient": 0.1}, r"'pid'.*fixed, adaptive"),
        ({"coefficient": 0.1}, r"kind is None"),
        ({"kind": "fixed", "coefficient": -0.1}, r"coefficient is -0.1"),
        ({"kind": "fixed", "beta": 0.1}, r"'beta'"),
        ({"kind": "adaptive", "coefficient": 0.0, "target": 0.1}, r"coefficient is 0"),
        ({"kind": "adaptive", "coefficient": 0.1, "target": math.nan}, r"target is nan"),
    ],
)
def test_bad_settings_are_refused_by_name(data, message):
    with pytest.raises(ValueError, match=message):
        kl.from_dict(data)
