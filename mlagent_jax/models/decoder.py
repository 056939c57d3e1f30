"""The decoder as pure functions over a static `Graph` and a plain pytree of parameters.

`create` (or the import of a checkpoint into the layout of `abstract`) splits the NNX modules of `models.layers` ONCE
into a `Graph` and `Params`. Everything after that is plain `jax.jit` with the graph as static argument: SFT and PPO
call `hidden_states` and `token_log_probs`, the sampler calls `prefill` and `decode_step` of `models.cache`.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mlagent_jax.models import rope
from mlagent_jax.models.attention import Kernel, causal_attention, choose_kernel
from mlagent_jax.models.config import LoRA, ModelConfig
from mlagent_jax.models.layers import Attend, Decoder, DecoderLayer, Extra
from mlagent_jax.parallelism import DEFAULT_RULES, Rules, constrain, shard_count, shardings

Params = dict[str, Any]  # embedder, layers (stacked), final_norm, and head if the embedding is not tied
Remat = Literal["none", "dots", "full"]
CHUNK_ELEMENTS = 2**25  # logits per device
_UNROLLED_UP_TO = 8  # layers; up to here an unrolled loop compiles fast enough and runs faster than a scan


@dataclasses.dataclass(frozen=True)
class Graph:
    """Static description of a model: hashable, the static argument of jitted functions; holds no array."""

    config: ModelConfig
    rules: Rules = DEFAULT_RULES
    attention: Kernel = "xla"
    scan_layers: bool = False
    lora: LoRA | None = None
    definitions: dict[str, nnx.GraphDef] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def bind(self, part: str, params: Params) -> Any:
        """Return the NNX module of one part (a key of `Params`) with its parameters; for `layers`, those of one
        layer."""
        return nnx.merge(self.definitions[part], params)


def build(
    config: ModelConfig,
    *,
    dtype: jnp.dtype = jnp.float32,
    rules: Rules = DEFAULT_RULES,
    attention: str = "auto",
    scan_layers: bool | None = None,
    platform: str | None = None,
) -> tuple[Graph, Params, Params]:
    """Return the graph, and the shapes and logical axes of its parameters (two equal trees); allocate nothing.

    Raises:
      ValueError: An attention kernel that does not run on this platform or with these rules.
    """
    definitions, shapes, axes = describe(config, dtype)
    scan = config.num_layers > _UNROLLED_UP_TO if scan_layers is None else scan_layers
    kernel = choose_kernel(attention, platform)
    table = dict(rules.table)
    if kernel == "splash" and table["heads"] != table["kv_heads"]:
        raise ValueError(
            f"the attention kernel splash works on whole groups of heads, and the sharding rules split heads over "
            f"{table['heads']}, kv_heads over {table['kv_heads']}: make both rows alike, or take the kernel xla"
        )
    return Graph(config, rules, kernel, scan, definitions=definitions), shapes, axes


def describe(
    config: ModelConfig, dtype: jnp.dtype = jnp.float32, lora: LoRA | None = None
) -> tuple[dict[str, nnx.GraphDef], Params, Params]:
    """Return, for each part of the model, its module's definition and the shapes and logical axes of its parameters."""
    model = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0), dtype, lora))
    definitions: dict[str, nnx.GraphDef] = {}
    shapes: Params = {}
    axes: Params = {}
    for part in ("embedder", "layers", "final_norm", "head"):
        module = getattr(model, part)
        if module is None:
            continue
        definitions[part], state = nnx.split(module)
        shapes[part] = nnx.to_pure_dict(state)
        stacked = ("layers",) if part == "layers" else ()
        axes[part] = jax.tree.map(
            lambda param, stacked=stacked: (*stacked, *param.get_metadata("logical_axes")),
            nnx.to_pure_dict(state, extract_fn=lambda param: param),
            is_leaf=lambda node: isinstance(node, nnx.Variable),
        )
    return definitions, shapes, axes


def abstract(
    config: ModelConfig,
    *,
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    **options: Any,
) -> tuple[Graph, Params]:
    """Do as `create`, with a `ShapeDtypeStruct` (sharded, given a mesh) for each parameter; allocate nothing.

    Raises:
      ValueError: As `create`.
    """
    graph, shapes, axes = build(config, dtype=dtype, rules=rules or DEFAULT_RULES, **options)
    if mesh is None:
        return graph, shapes
    placed = shardings(axes, mesh, graph.rules, shapes)
    return graph, jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, placed)


def create(
    config: ModelConfig,
    key: jax.Array,
    *,
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    **options: Any,
) -> tuple[Graph, Params]:
    """Create a model with random initial weights.

    Args:
      config: Its shape.
      key: A typed key (`jax.random.key`); the weights depend only on it, not on the mesh.
      dtype: Dtype of the parameters.
      mesh: Mesh to create the shards on; None for the default device.
      rules: Map from logical axes to mesh axes; default `DEFAULT_RULES`.
      **options: `attention` (a kernel's name or "auto"), `scan_layers` (scan over the stacked layers instead of
        unrolling them; default: from 9 layers on) and `platform` (the target, when compiling ahead of time for other
        hardware).

    Raises:
      ValueError: The mesh does not divide a dimension, or a kernel does not run here.
    """
    graph, target = abstract(config, dtype=dtype, mesh=mesh, rules=rules, **options)

    def initialise(key: jax.Array) -> Params:
        model = Decoder(config, nnx.Rngs(params=key), dtype)
        return {part: nnx.to_pure_dict(nnx.split(getattr(model, part))[1]) for part in target}

    placed = None if mesh is None else jax.tree.map(lambda leaf: leaf.sharding, target)
    return graph, jax.jit(initialise, out_shardings=placed)(key)


def logical_axes(config: ModelConfig) -> Params:
    """Return the logical axis names of each parameter, in the tree of `Params`."""
    return build(config)[2]


def layer_params(params: Params) -> Params:
    """Return the parameters with `layers` as a list of one tree per layer; unchanged if it is one already.

    On CPUs slice once, outside a decoding loop: inside, XLA would copy each layer's weights.
    """
    if isinstance(params["layers"], list):
        return params
    count = len(jax.tree.leaves(params["layers"])[0])
    layers = [jax.tree.map(operator.itemgetter(index), params["layers"]) for index in range(count)]
    return {**params, "layers": layers}


def hidden_states(
    graph: Graph,
    params: Params,
    tokens: jax.Array,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
    remat: Remat = "none",
    compute_dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Return the final hidden states of right-padded rows, or of rows packed with several segments.

    Args:
      graph: From `create` or `abstract`.
      params: Its parameters, layers stacked or as from `layer_params`.
      tokens: int32 [batch, time].
      positions: int32 [batch, time] for the rotary embeddings; default: counted from the start of each segment.
      segment_ids: int32 [batch, time]; 0 is padding, and no token attends across segments.
      lengths: int32 [batch], instead of `segment_ids` if a row holds one sequence (needed by fused kernels).
      remat: Activations kept for the backward pass: `none` keeps all, `dots` the results of the projections, `full`
        only the input of each layer.
      compute_dtype: Dtype of the activations; default: that of the parameters.

    Returns:
      [batch, time, hidden] in the compute dtype, after the final norm; meaningless (but finite) at padding.
    """
    if positions is None:
        positions = _positions(tokens, segment_ids)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
        attended = causal_attention(
            query, key, value, segment_ids=segment_ids, lengths=lengths, kernel=graph.attention, rules=graph.rules
        )
        return attended, None

    return run_layers(graph, params, tokens, positions, attend, remat=remat, compute_dtype=compute_dtype)[0]


def run_layers(
    graph: Graph,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    attend: Attend[Extra],
    *,
    remat: Remat = "none",
    compute_dtype: jnp.dtype | None = None,
) -> tuple[jax.Array, Extra]:
    """Embed, run every layer with the same `attend`, norm: [batch, time] -> ([batch, time, hidden], extras).

    The extras that `attend` returns are stacked on a leading layer axis.
    """
    dtype = compute_dtype or params["embedder"]["embedding"].dtype
    with jax.named_scope("embedding"):
        x = graph.bind("embedder", params["embedder"])(tokens, dtype, graph.rules)
    cos_sin = rope.table(graph.config, positions)

    def step(x: jax.Array, layer: Params) -> tuple[jax.Array, Extra]:
        module: DecoderLayer = graph.bind("layers", layer)
        return module(x, cos_sin, attend, graph.rules)

    step = _rematerialised(step, remat)
    if graph.scan_layers and not isinstance(params["layers"], list):
        x, extras = jax.lax.scan(step, x, params["layers"])
    else:
        collected = []
        for layer in layer_params(params)["layers"]:
            x, extra = step(x, layer)
            collected.append(extra)
        extras = jax.tree.map(lambda *leaves: jnp.stack(leaves), *collected)
    with jax.named_scope("final_norm"):
        return graph.bind("final_norm", params["final_norm"])(x), extras


def _rematerialised(step: Any, remat: Remat) -> Any:
    if remat == "none":
        return step
    if remat == "full":
        return jax.checkpoint(step)
    if remat == "dots":
        return jax.checkpoint(step, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    raise ValueError(f"remat={remat!r} is unknown: use none, dots or full")


def _positions(tokens: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """Count positions from the start of each segment, int32 [batch, time]."""
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    if segment_ids is None:
        return index
    starts = jnp.concatenate(
        (jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]), axis=1
    )
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def logits(graph: Graph, params: Params, hidden: jax.Array) -> jax.Array:
    """Project [..., hidden] to fp32 [..., vocab], for single positions; over sequences use `token_log_probs`."""
    part = "embedder" if graph.config.tie_word_embeddings else "head"
    return graph.bind(part, params[part]).project(hidden)


def token_log_probs(
    graph: Graph,
    params: Params,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return each target's log-probability and the entropy of the next-token distribution softmax(logits /
    temperature).

    The time axis is processed in chunks that the backward pass recomputes, so that [batch, time, vocab] is never
    materialised for large inputs.

    Args:
      graph: As `hidden_states`.
      params: As `hidden_states`.
      hidden: [batch, time, hidden].
      targets: int32 [batch, time]: the token that follows position t, shifted by the caller.
      temperature: Divisor of the logits, above 0.
      chunk_size: Positions per chunk; default: as many as keep the logits under 2**25 elements (128 MiB) per device.

    Returns:
      (log-probs, entropies in nats), each fp32 [batch, time].
    """
    batch, time = targets.shape
    vocab = graph.config.vocab_size
    shards = shard_count("batch", graph.rules) * shard_count("vocab", graph.rules)  # of the logits
    chunk = min(time, chunk_size or max(1, shards * CHUNK_ELEMENTS // (batch * vocab)))
    part = "embedder" if graph.config.tie_word_embeddings else "head"
    # Gather over fsdp once here, not once per chunk in the loop.
    head = dict(params[part])
    for name, axes in (("embedding", ("vocab", "hidden")), ("kernel", ("hidden", "vocab"))):
        if name in head:
            head[name] = constrain(head[name], axes, graph.rules, "output projection")

    @jax.named_scope("vocabulary")
    def one(head: Params, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        scaled = graph.bind(part, head).project(hidden) / temperature
        scaled = constrain(scaled, ("vocab_batch", "time", "vocab"), graph.rules, "logits")
        normaliser = jax.nn.logsumexp(scaled, axis=-1)
        # A masked sum, not a gather: its gradient is no scatter, and a sharded vocabulary needs no exchange.
        chosen = jnp.arange(vocab) == targets[..., None]
        log_probs = jnp.sum(jnp.where(chosen, scaled, 0.0), axis=-1) - normaliser
        probabilities = jnp.exp(scaled - normaliser[..., None])
        entropy = normaliser - jnp.sum(probabilities * scaled, axis=-1)
        return log_probs, entropy

    if chunk == time:
        return one(head, hidden, targets)
    pad = -time % chunk
    chunks = (time + pad) // chunk

    def split(x: jax.Array) -> jax.Array:
        """[batch, time, ...] -> [chunks, batch, chunk, ...]"""
        padded = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(batch, chunks, chunk, *x.shape[2:]), 1, 0)

    step = functools.partial(jax.checkpoint(one), head)
    results = jax.lax.map(lambda pair: step(*pair), (split(hidden), split(targets)))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(batch, time + pad)[:, :time] for x in results)
