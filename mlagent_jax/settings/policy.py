"""Settings of the policy: its shape, mesh, adapters, vocabulary and prompt; its optimizer's are in `optim.config`."""

from __future__ import annotations

import dataclasses

MATMUL_PRECISIONS = ("auto", "default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
"""Values of `policy.matmul_precision`."""


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Policy: a Hugging Face checkpoint, or a Qwen2 architecture trained from scratch."""

    checkpoint: str = ""
    """Hugging Face folder or hub id, OWNER/NAME[@REVISION]. Empty: train from scratch with the shape below."""
    hidden_size: int = 192
    """Width of the residual stream; a multiple of num_heads."""
    num_layers: int = 4
    """Number of decoder layers."""
    num_heads: int = 6
    """Number of query heads, each hidden_size / num_heads wide."""
    num_kv_heads: int = 2
    """Number of key and value heads; a divisor of num_heads."""
    intermediate_size: int = 512
    """Width of the MLP."""
    compute_dtype: str = "float32"
    """Dtype of activations: float32 or bfloat16."""
    param_dtype: str = "float32"
    """Dtype of the parameters that the optimizer updates."""
    matmul_precision: str = "auto"
    """Precision of matrix products: auto (full float32 where compute_dtype is float32, else what the device does by
    itself), or a name of JAX: default, high, highest, bfloat16, tensorfloat32, float32. Without it TPUs and recent GPUs
    round the inputs of float32 products."""
    remat: str = "none"
    """Activations that the backward pass recomputes: none, dots (all but the projections) or full (whole layers)."""
    attention: str = "auto"
    """Attention kernel: auto, xla, cudnn or splash. A kernel that cannot run on this platform is an error. With
    cudnn, sft needs packing=False."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis (-1: all remaining devices), and the sharding rules."""

    data: int = -1
    """Number of replicas of the parameters; each gets a shard of the batch."""
    fsdp: int = 1
    """Number of parameter shards that are gathered layer by layer; they shard the batch too."""
    tensor: int = 1
    """Number of shards of each matrix that are never gathered (tensor parallelism)."""
    rules: str = ""
    """Changed rows of the table from logical axes to mesh axes (docs/memory.md), for example `embed=data+fsdp,vocab=`.
    Nothing after `=`: replicated."""

    @property
    def shape(self) -> dict[str, int]:
        """Return the number of devices along each axis."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021), trained by sft and rl on top of the frozen policy before the stage."""

    rank: int = 0
    """Rank of the adapters. 0: no adapters, every parameter is trained."""
    alpha: float = 32.0
    """Scale numerator: an adapter's output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("query", "key", "value", "output", "gate", "up", "down")
    """Linear maps with an adapter: those of the layers, and `head` if it is not tied to the embedding."""


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Input of `tools/plan.py`; a run does not read it."""

    slice: str = ""
    """Name of an accelerator slice in `mlagent_jax/parallelism/slices.py`. Empty: name it on the command line."""
    model: str = ""
    """Path of a `config.json` (or its folder) that describes a policy whose `policy.checkpoint` does not exist yet."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Vocabulary of a policy from scratch; a checkpoint brings its own."""

    vocab_size: int = 1024
    """Number of tokens, special tokens included."""


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Rendering of states as prompts."""

    profile: str = "compact"
    """Grammar of replies: compact (Action and Action Input), medium (a Thought before them, free edits), or full
    (MLAgentBench's six labels)."""
    max_prompt_tokens: int = 320
    """Maximum tokens per prompt. Longer prompts drop their oldest steps first."""
    max_action_tokens: int = 96
    """Maximum tokens per action. A longer action is cut and counts as invalid."""
    history_steps: int = 3
    """Number of past steps shown."""
    operators: bool = False
    """Whether prompts name the kind of step to take (draft, improve, debug or combine) and list earlier attempts. Train
    and search with the same value."""
    editor: str = ""
    """Name of the language model behind `Edit Script (AI)` and `Understand File` (profile full). Only workers with the
    same $MLAGENT_EDITOR_MODEL run such jobs. Empty: the two actions are not offered."""
