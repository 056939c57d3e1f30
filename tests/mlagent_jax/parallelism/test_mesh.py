import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from mlagent_jax.parallelism import DEFAULT_RULES, Rules, constrain, make_mesh, shardings


def abstract_mesh(data=1, fsdp=1, tensor=1):
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)


def test_a_mesh_of_what_there_is():
    mesh = make_mesh({"fsdp": -1}, jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"model": 2}, "model"),
        ({"data": 0}, "positive"),
        ({"data": -1, "fsdp": -1}, "at most one -1"),
        ({"data": 3}, "does not fit 1 devices"),
        ({"data": -1, "tensor": 2}, "does not fit 1 devices"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(shape, named):
    with pytest.raises(ValueError, match=named):
        make_mesh(shape, jax.devices()[:1])


def test_rules_map_logical_axes_to_the_axes_that_split():
    spec = DEFAULT_RULES.spec(("batch", "time", "mlp"), abstract_mesh(2, 2, 2))
    assert spec == PartitionSpec(("data", "fsdp"), None, "tensor")
    assert DEFAULT_RULES.spec(("batch", "mlp"), abstract_mesh(data=4)) == PartitionSpec("data", None)


def test_a_dimension_that_does_not_divide_is_named_with_the_mesh():
    shapes = {"layers": {"kernel": jax.ShapeDtypeStruct((12, 6), jnp.float32)}}
    with pytest.raises(ValueError, match=r"layers\.kernel: dimension 'kv_heads' of size 6 .* tensor=4"):
        shardings({"layers": {"kernel": ("embed", "kv_heads")}}, abstract_mesh(tensor=4), shapes=shapes)


def test_an_axis_without_a_rule_or_used_twice_is_refused():
    with pytest.raises(ValueError, match="'expert' has no rule"):
        DEFAULT_RULES.spec(("expert",), abstract_mesh(tensor=2))
    with pytest.raises(ValueError, match="twice"):
        Rules.of({"a": ("tensor",), "b": ("tensor",)}).spec(("a", "b"), abstract_mesh(tensor=2))


def test_constrain_is_nothing_without_a_mesh():
    x = jnp.ones((3, 2))
    assert constrain(x, ("batch", "mlp"), DEFAULT_RULES) is x
