import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from mlagent_jax import models
from mlagent_jax.parallelism import DEFAULT_RULES, Rules, constrain, make_mesh, shardings
from mlagent_jax.parallelism.sharding import TOGETHER


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


def test_a_config_changes_rows_of_the_table():
    rules = DEFAULT_RULES.changed("embed=data+fsdp,vocab=")
    mesh = abstract_mesh(2, 2, 2)
    assert rules.spec(("vocab", "embed"), mesh) == PartitionSpec(None, ("data", "fsdp"))
    assert rules.spec(("embed", "mlp"), mesh) == PartitionSpec(("data", "fsdp"), "tensor")
    assert DEFAULT_RULES.changed("") == DEFAULT_RULES


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("mlp", "rule 'mlp' is not valid: write"),
        ("expert=tensor", "rule 'expert=tensor' is not valid: .*embed, vocab"),
        ("time=tensor", "rule 'time=tensor' is not valid"),
        ("mlp=,mlp=tensor", "once for each"),
        ("mlp=model", "splits over 'model': use data, fsdp, tensor"),
        ("mlp=tensor+tensor", "each once"),
        ("mlp=tensor+fsdp", "mesh axis fsdp twice in arrays with axes .*'mlp'"),
        ("embed=tensor", "mesh axis tensor twice in arrays with axes .*'embed'"),
    ],
)
def test_a_row_that_cannot_be_is_refused(rows, named):
    with pytest.raises(ValueError, match=named):
        DEFAULT_RULES.changed(rows)


def test_all_axes_that_meet_in_an_array_are_known_to(monkeypatch):
    """Training, prefill and decoding of both kinds of embeddings, on a mesh in the abstract."""
    met = set()
    spec = Rules.spec
    monkeypatch.setattr(Rules, "spec", lambda self, axes, *rest: met.add(axes) or spec(self, axes, *rest))
    with jax.sharding.use_abstract_mesh(abstract_mesh(2, 2, 2)):
        for tied in (True, False):
            config = models.ModelConfig(96, 32, 2, 8, 8, 8, 64, attention_bias=True, tie_word_embeddings=tied)
            graph, params = models.abstract(config, mesh=abstract_mesh(2, 2, 2))
            tokens = jax.ShapeDtypeStruct((8, 16), jnp.int32)

            def loss(params, tokens, graph=graph):
                hidden = models.hidden_states(graph, params, tokens)
                return models.token_log_probs(graph, params, hidden, tokens)[0].mean()

            jax.eval_shape(loss, params, tokens)
            jax.eval_shape(lambda graph=graph: models.init_cache(graph, 8, 16, jnp.float32))
    assert len(met) > 10
    assert {"slots", "vocab", "mlp", "kv_heads"} <= {axis for axes in met for axis in axes}
    for axes in met:
        assert any({*axes} - {None} <= set(together) for together in TOGETHER), axes


def test_splash_wants_whole_groups_of_heads():
    config = models.ModelConfig(96, 32, 2, 8, 2, 8, 64)
    rules = DEFAULT_RULES.changed("kv_heads=")
    with pytest.raises(ValueError, match="splash works on whole groups"):
        models.abstract(config, rules=rules, platform="tpu")
    assert models.abstract(config, rules=rules, platform="tpu", attention="xla")[0].rules == rules


def test_constrain_is_nothing_without_a_mesh():
    x = jnp.ones((3, 2))
    assert constrain(x, ("batch", "mlp"), DEFAULT_RULES) is x
