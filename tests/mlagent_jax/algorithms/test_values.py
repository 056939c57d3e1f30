"""The critic's loss against a plain loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.algorithms.means import AGGREGATIONS
from mlagent_jax.algorithms.values import explained_variance, value_loss

from .conftest import mean_by_loop


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_value_loss_matches_its_definition(batch, aggregation, clip):
    values, old, returns, mask = (batch[n] for n in ("log_probs", "old_log_probs", "advantages", "mask"))

    def token(i, t):
        error = (values[i, t] - returns[i, t]) ** 2
        if clip is not None:
            near = old[i, t] + min(max(values[i, t] - old[i, t], -clip), clip)
            error = max(error, (near - returns[i, t]) ** 2)
        return 0.5 * error

    arguments = [jnp.array(array) for array in (values, old, returns, mask)]
    loss, metrics = value_loss(*arguments, clip=clip, aggregation=aggregation)
    np.testing.assert_allclose(loss.value, mean_by_loop(token, mask, aggregation), rtol=1e-5)
    gradient = jax.grad(lambda v: value_loss(v, *arguments[1:], clip=clip)[0].value)(arguments[0])
    assert np.all(np.isfinite(gradient)) and not np.any(np.asarray(gradient)[~mask])
    expected = 1 - np.var((returns - old)[mask]) / np.var(returns[mask])
    np.testing.assert_allclose(explained_variance(metrics), expected, rtol=1e-4)


def test_explained_variance_of_constant_returns_is_0():
    ones = jnp.full((2, 3), 0.1)
    _, metrics = value_loss(ones, 3 * ones, ones, ones > 0, clip=None)
    assert explained_variance(metrics) == 0.0
