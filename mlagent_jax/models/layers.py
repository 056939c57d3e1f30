"""Layers of the decoder as Flax NNX modules: each parameter with its shape, logical axes and initialiser.

The modules describe the parameters (creation, sharding, import of checkpoints) and the mathematics of one layer;
`models.decoder` runs them over plain pytrees. Attention is an argument, so that training, prefill and decoding share
one layer: they differ only in which positions a query attends to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from mlagent_jax.models import rope
from mlagent_jax.models.config import LoRA, ModelConfig
from mlagent_jax.parallelism import LogicalAxes, Rules, constrain

Extra = TypeVar("Extra")
# (query [batch, time, heads, head_dim], key, value [batch, time, kv_heads, head_dim]) -> (as query, an extra result)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Extra]]


def parameter(value: jax.Array, axes: LogicalAxes) -> nnx.Param:
    """Return a parameter with logical axis names, which `models.decoder` turns into shardings."""
    return nnx.Param(value, logical_axes=axes, eager_sharding=False)


ADAPTER = "adapter"
"""Attribute of a linear map, and key in `Params`, that holds its adapter."""


class Adapter(nnx.Module):
    """Low-rank correction of a linear map, always float32 and initially zero.

    Initialised as in PEFT: `down` uniform over +- 1 / sqrt(inputs), `up` zero.
    """

    def __init__(self, rngs: nnx.Rngs, shape: tuple[int, ...], axes: LogicalAxes, contract: int, lora: LoRA) -> None:
        self.contract, self.scale = contract, lora.scale
        bound = math.prod(shape[:contract]) ** -0.5
        down = jax.random.uniform(rngs.params(), (*shape[:contract], lora.rank), jnp.float32, -bound, bound)
        self.down = parameter(down, (*axes[:contract], None))
        self.up = parameter(jnp.zeros((lora.rank, *shape[contract:]), jnp.float32), (None, *axes[contract:]))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *in] -> [..., *out]"""
        low = _linear(x, self.down[...], self.contract)
        return self.scale * _linear(low, self.up[...], 1)


def _linear(x: jax.Array, kernel: jax.Array, contract: int) -> jax.Array:
    """Contract the last `contract` axes of `x` with the kernel's first ones, in the dtype of `x`."""
    axes = tuple(range(x.ndim - contract, x.ndim))
    return jax.lax.dot_general(x, kernel.astype(x.dtype), ((axes, tuple(range(contract))), ((), ())))


class Projection(nnx.Module):
    """Linear map between the named axes; the kernel's leading `contract` axes are the inputs."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        shape: tuple[int, ...],
        axes: LogicalAxes,
        *,
        contract: int = 1,
        bias: bool = False,
        std: float,
        dtype: jnp.dtype,
        lora: LoRA | None = None,
    ) -> None:
        self.contract = contract
        self.kernel = parameter(std * jax.random.normal(rngs.params(), shape, dtype), axes)
        self.bias = parameter(jnp.zeros(shape[contract:], dtype), axes[contract:]) if bias else None
        self.adapter = None if lora is None else Adapter(rngs, shape, axes, contract, lora)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *in] -> [..., *out]"""
        out = _linear(x, self.kernel[...], self.contract)
        out = out if self.bias is None else out + self.bias[...].astype(x.dtype)
        return out if self.adapter is None else out + self.adapter(x)


def _adapting(name: str, lora: LoRA | None) -> LoRA | None:
    """Return `lora` if the map `name` is among its targets, else None."""
    return lora if lora is not None and name in lora.targets else None


class RMSNorm(nnx.Module):
    """Root mean square norm over the last axis, in fp32 (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, axis: str | None, eps: float, dtype: jnp.dtype) -> None:
        self.eps = eps
        self.scale = parameter(jnp.ones((size,), dtype), (axis,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., size] -> the same"""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary embeddings, and per-head norms if the model has them."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: jnp.dtype, lora: LoRA | None = None) -> None:
        width, heads, kv_heads, head_dim = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim

        def inward(name: str, count: int, axis: str) -> Projection:
            return Projection(
                *(rngs, (width, count, head_dim), ("embed", axis, "head_dim")),
                bias=config.attention_bias,
                std=config.initializer_range,
                dtype=dtype,
                lora=_adapting(name, lora),
            )

        self.query = inward("query", heads, "heads")
        self.key = inward("key", kv_heads, "kv_heads")
        self.value = inward("value", kv_heads, "kv_heads")
        self.output = Projection(
            *(rngs, (heads, head_dim, width), ("heads", "head_dim", "embed")),
            contract=2,
            bias=config.attention_output_bias,
            std=config.initializer_range,
            dtype=dtype,
            lora=_adapting("output", lora),
        )
        norm = config.qk_norm
        self.query_norm = RMSNorm(head_dim, "head_dim", config.rms_norm_eps, dtype) if norm else None
        self.key_norm = RMSNorm(head_dim, "head_dim", config.rms_norm_eps, dtype) if norm else None

    def __call__(
        self, x: jax.Array, cos_sin: tuple[jax.Array, jax.Array], attend: Attend[Extra], rules: Rules
    ) -> tuple[jax.Array, Extra]:
        """[batch, time, hidden] -> (the same shape, the extra result of `attend`)"""
        with jax.named_scope("projections"):
            query = constrain(self.query(x), ("batch", "time", "heads", "head_dim"), rules, "query")
            key = constrain(self.key(x), ("batch", "time", "kv_heads", "head_dim"), rules, "key")
            value = constrain(self.value(x), ("batch", "time", "kv_heads", "head_dim"), rules, "value")
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        with jax.named_scope("attend"):
            out, extra = attend(rope.rotate(query, cos_sin), rope.rotate(key, cos_sin), value)
        with jax.named_scope("output"):
            return self.output(out), extra


class GatedMLP(nnx.Module):
    """SwiGLU (Shazeer 2020): `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: jnp.dtype, lora: LoRA | None = None) -> None:
        width, inner = config.hidden_size, config.intermediate_size

        def linear(name: str, shape: tuple[int, int], axes: LogicalAxes) -> Projection:
            return Projection(rngs, shape, axes, std=config.initializer_range, dtype=dtype, lora=_adapting(name, lora))

        self.gate = linear("gate", (width, inner), ("embed", "mlp"))
        self.up = linear("up", (width, inner), ("embed", "mlp"))
        self.down = linear("down", (inner, width), ("mlp", "embed"))

    def __call__(self, x: jax.Array, rules: Rules) -> jax.Array:
        """[batch, time, hidden] -> the same"""
        inner = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(inner, ("mlp_batch", "time", "mlp"), rules, "mlp activation"))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: jnp.dtype, lora: LoRA | None = None) -> None:
        self.attention_norm = RMSNorm(config.hidden_size, "embed", config.rms_norm_eps, dtype)
        self.attention = Attention(config, rngs, dtype, lora)
        self.mlp_norm = RMSNorm(config.hidden_size, "embed", config.rms_norm_eps, dtype)
        self.mlp = GatedMLP(config, rngs, dtype, lora)

    def __call__(
        self, x: jax.Array, cos_sin: tuple[jax.Array, jax.Array], attend: Attend[Extra], rules: Rules
    ) -> tuple[jax.Array, Extra]:
        """[batch, time, hidden] -> (the same shape, the extra result of `attend`)"""
        with jax.named_scope("attention"):
            attended, extra = self.attention(self.attention_norm(x), cos_sin, attend, rules)
            x = x + constrain(attended, ("batch", "time", "hidden"), rules, "attention output")
        with jax.named_scope("mlp"):
            mapped = self.mlp(self.mlp_norm(x), rules)
            return x + constrain(mapped, ("batch", "time", "hidden"), rules, "mlp output"), extra


class Embedder(nnx.Module):
    """Map from token ids to vectors, and back if the output projection is tied to it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        shape = (config.vocab_size, config.hidden_size)
        self.embedding = parameter(
            config.initializer_range * jax.random.normal(rngs.params(), shape, dtype), ("vocab", "embed")
        )

    def __call__(self, tokens: jax.Array, dtype: jnp.dtype, rules: Rules) -> jax.Array:
        """int32 [batch, time] -> [batch, time, hidden]"""
        # Gather over fsdp before the lookup: a table sharded by column would be exchanged token by token.
        embedding = constrain(self.embedding[...].astype(dtype), ("vocab", "hidden"), rules, "embedding")
        return constrain(jnp.take(embedding, tokens, axis=0), ("batch", "time", "hidden"), rules, "embedded tokens")

    def project(self, hidden: jax.Array) -> jax.Array:
        """[..., hidden] -> fp32 logits [..., vocab]"""
        table = self.embedding[...].astype(hidden.dtype)
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)


class Head(nnx.Module):
    """Output projection of a model that does not tie it to the embedding."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: jnp.dtype, lora: LoRA | None = None) -> None:
        shape, axes = (config.hidden_size, config.vocab_size), ("embed", "vocab")
        self.kernel = parameter(config.initializer_range * jax.random.normal(rngs.params(), shape, dtype), axes)
        lora = _adapting("head", lora)
        self.adapter = None if lora is None else Adapter(rngs, shape, axes, 1, lora)

    def project(self, hidden: jax.Array) -> jax.Array:
        """[..., hidden] -> fp32 logits [..., vocab]"""
        kernel = self.kernel[...].astype(hidden.dtype)
        out = jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)
        return out if self.adapter is None else out + self.adapter(hidden).astype(jnp.float32)


class Decoder(nnx.Module):
    """Whole model; the parameters of its layers are stacked on a leading `layers` axis."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: jnp.dtype, lora: LoRA | None = None) -> None:
        def layer(key: jax.Array) -> DecoderLayer:
            return DecoderLayer(config, nnx.Rngs(params=key), dtype, lora)

        self.embedder = Embedder(config, rngs, dtype)
        self.layers = nnx.vmap(layer)(jax.random.split(rngs.params(), config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, "embed", config.rms_norm_eps, dtype)
        self.head = None if config.tie_word_embeddings else Head(config, rngs, dtype, lora)
