"""Dense decoder-only transformers as pure functions over a static graph and a pytree of parameters."""

from mlagent_jax.models.attention import causal_attention, choose_kernel
from mlagent_jax.models.cache import Cache, Groups, decode_step, init_cache, prefill, prefill_part
from mlagent_jax.models.config import LoRA, ModelConfig, RopeScaling
from mlagent_jax.models.decoder import (
    Graph,
    Params,
    abstract,
    create,
    hidden_states,
    layer_params,
    logical_axes,
    logits,
    token_log_probs,
)

__all__ = [
    "Cache",
    "Graph",
    "Groups",
    "LoRA",
    "ModelConfig",
    "Params",
    "RopeScaling",
    "abstract",
    "causal_attention",
    "choose_kernel",
    "create",
    "decode_step",
    "hidden_states",
    "init_cache",
    "layer_params",
    "logical_axes",
    "logits",
    "prefill",
    "prefill_part",
    "token_log_probs",
]
