"""Micro-batches change nothing: gradients and sums are those of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.optim.accumulation import mapped, summed_gradients


def masked_loss(params, rows):
    error = jnp.where(rows["mask"], (rows["x"] @ params["w"]) ** 2, 0.0)
    return jnp.sum(error), {"count": jnp.sum(rows["mask"])}


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    # Rows count differently, one not at all: a mean of means would be wrong.
    mask = rng.random((8, 5)) < np.linspace(0.0, 1.0, 8)[:, None]
    return {"x": rng.normal(size=(8, 5, 3)).astype(np.float32), "mask": mask}


@pytest.mark.parametrize("micro_rows", [1, 2, 4, 8])
def test_gradients_and_sums_are_those_of_the_whole_batch(batch, micro_rows):
    params = {"w": jnp.asarray([0.5, -1.0, 2.0])}
    whole, counts = summed_gradients(masked_loss, params, batch, 0)
    parts, part_counts = summed_gradients(masked_loss, params, batch, micro_rows)
    np.testing.assert_allclose(parts["w"], whole["w"], rtol=1e-5)
    assert int(part_counts["count"]) == int(counts["count"]) == batch["mask"].sum()


def test_bfloat16_gradients_add_up_in_float32(batch):
    params = {"w": jnp.asarray([0.5, -1.0, 2.0], jnp.bfloat16)}
    assert summed_gradients(masked_loss, params, batch, 2)[0]["w"].dtype == jnp.float32


def test_rows_that_do_not_divide_the_batch_are_refused(batch):
    with pytest.raises(ValueError, match="micro-batches of 3 rows do not divide a batch of 8"):
        summed_gradients(masked_loss, {"w": jnp.zeros(3)}, batch, 3)


@pytest.mark.parametrize("micro_rows", [0, 1, 4])
def test_mapping_in_parts_gives_the_whole(batch, micro_rows):
    out = jax.jit(lambda rows: mapped(lambda r: {"y": r["x"].sum(-1)}, rows, micro_rows))(batch)
    np.testing.assert_allclose(out["y"], batch["x"].sum(-1), rtol=1e-5)
