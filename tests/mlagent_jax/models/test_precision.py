"""Precision of matrix products by config and platform, and the tolerance that goes with it."""

import threading

import jax
import pytest

from mlagent_jax.models.precision import in_effect, jax_precision, tolerance
from mlagent_jax.settings.policy import PolicyConfig


@pytest.mark.parametrize(
    ("precision", "dtype", "platform", "named", "allowed"),
    [
        ("auto", "float32", "cpu", None, 1e-4),
        ("auto", "float32", "gpu", "highest", 1e-3),
        ("auto", "float32", "tpu", "highest", 1e-3),
        ("auto", "bfloat16", "tpu", None, 0.05),
        ("default", "float32", "tpu", None, 0.05),
        ("default", "float32", "gpu", None, 0.0125),
        ("tensorfloat32", "float32", "gpu", "tensorfloat32", 0.0125),
        ("bfloat16", "float32", "tpu", "bfloat16", 0.05),
        ("high", "float32", "tpu", "high", 2e-3),
        ("highest", "bfloat16", "gpu", "highest", 0.05),
    ],
)
def test_float32_is_float32_everywhere_unless_the_config_says_otherwise(precision, dtype, platform, named, allowed):
    assert jax_precision(precision, dtype, platform) == named
    assert tolerance(precision, dtype, platform) == allowed


def test_the_precision_holds_in_every_thread_and_ends_with_the_run():
    before, seen = jax.config.jax_default_matmul_precision, []
    with in_effect(PolicyConfig(matmul_precision="high")):
        thread = threading.Thread(target=lambda: seen.append(jax.config.jax_default_matmul_precision))
        thread.start()
        thread.join()
    assert seen == ["high"]
    assert jax.config.jax_default_matmul_precision == before
