"""Shape of a decoder-only checkpoint, read from its `config.json`.

A `ModelConfig` is frozen and hashable, so that it can be part of a static argument of a jitted function. It covers
dense Qwen2 / Qwen2.5, Qwen3 and Llama 3. A field or architecture that `models.decoder` would compute wrongly is
rejected by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

ModelType = Literal["qwen2", "qwen3", "llama"]
RopeKind = Literal["default", "linear", "llama3", "yarn"]

ARCHITECTURES: dict[str, str] = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
# transformers' defaults for fields missing from a config.json; a test compares them with transformers.
_ROPE_THETA = 10_000.0
_MAX_POSITIONS = {"qwen2": 32_768, "qwen3": 32_768, "llama": 2_048}
_KV_HEADS = {"qwen2": 32, "qwen3": 32}  # Llama: the number of heads

# Fields whose effect is not implemented, with the values that have no effect.
_ONLY_SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1, 1.0, None),
    "is_decoder": (True, False, None),
    "add_cross_attention": (False, None),
    "quantization_config": (None,),
    "num_experts": (0, None),
    "num_local_experts": (0, None),
    "attention_dropout": (0, 0.0, None),
    "use_bidirectional_attention": (False, None),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies beyond the pre-training context; names as in Hugging Face.

    `default` ignores every other field, `linear` uses `factor`, `llama3` the two frequency factors and the original
    length, `yarn` the rest. `None` means "derived", as in transformers' `modeling_rope_utils`.
    """

    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], max_position_embeddings: int) -> RopeScaling:
        """Read a `rope_scaling` or `rope_parameters` object.

        Raises:
          ValueError: A kind other than the four, or a missing field.
        """
        kind = raw.get("rope_type", raw.get("type", "default"))
        if kind not in ("default", "linear", "llama3", "yarn"):
            raise ValueError(f"rope_scaling type {kind!r} is not supported: use default, linear, llama3 or yarn")
        if raw.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(f"partial_rotary_factor={raw['partial_rotary_factor']!r} is not supported: only 1.0 is")
        if kind == "default":
            return cls()
        original = raw.get("original_max_position_embeddings") or max_position_embeddings
        for name in ("factor", *(("low_freq_factor", "high_freq_factor") if kind == "llama3" else ())):
            if raw.get(name) is None:
                raise ValueError(f"rope_scaling of type {kind!r} lacks the field {name!r}")
        names = {field.name for field in dataclasses.fields(cls)} - {"kind", "factor"}
        given = {name: raw[name] for name in names if raw.get(name) is not None}
        return cls(
            **{**given, "kind": kind, "factor": float(raw["factor"]), "original_max_position_embeddings": original}
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the object for `rope_scaling`, with only the fields that its kind reads."""
        used = {
            "default": (),
            "linear": ("factor",),
            "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
            "yarn": (
                *("factor", "original_max_position_embeddings", "attention_factor"),
                *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
            ),
        }[self.kind]
        given = {name: getattr(self, name) for name in used}
        return {"rope_type": self.kind, **{name: value for name, value in given.items() if value is not None}}


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters of linear maps (Hu et al. 2021)."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Names among `query`, `key`, `value`, `output`, `gate`, `up`, `down` and `head`."""

    @property
    def scale(self) -> float:
        """Return the factor of an adapter's output."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of one dense decoder. Sizes count elements, lengths count tokens."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    model_type: ModelType = "qwen2"
    rope_theta: float = 1_000_000.0
    rope_scaling: RopeScaling = RopeScaling()
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # query, key and value projections (Qwen2)
    attention_output_bias: bool = False  # output projection (Qwen3 and Llama with `attention_bias`)
    qk_norm: bool = False  # RMS norm of each query and key head (Qwen3)
    max_position_embeddings: int = 32_768
    initializer_range: float = 0.02  # standard deviation of initial weights
    dtype: str = "bfloat16"  # of stored weights; the compute dtype is separate

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            raise ValueError(f"model_type {self.model_type!r} is not supported: use one of {sorted(ARCHITECTURES)}")
        for name in (
            *("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads"),
            *("head_dim", "intermediate_size", "max_position_embeddings"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embeddings rotate pairs")

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read the object of a Hugging Face `config.json` (layouts of transformers 4 and 5).

        Raises:
          ValueError: An unsupported architecture or field, or a missing field, by name.
        """
        model_type = raw.get("model_type")
        if model_type not in ARCHITECTURES:
            raise ValueError(f"model_type {model_type!r} is not supported: use one of {sorted(ARCHITECTURES)} (dense)")
        architectures = raw.get("architectures") or [ARCHITECTURES[model_type]]
        if architectures != [ARCHITECTURES[model_type]]:
            raise ValueError(
                f"architectures {architectures} is not supported: {model_type!r} needs {ARCHITECTURES[model_type]!r}"
            )
        for name, allowed in _ONLY_SUPPORTED_VALUES.items():
            if name in raw and raw[name] not in allowed:
                raise ValueError(f"{name}={raw[name]!r} is not supported: only {allowed[0]!r} is")
        if set(raw.get("layer_types") or ()) - {"full_attention"}:
            raise ValueError(f"layer_types={raw['layer_types']!r} is not supported: only 'full_attention' is")

        def required(name: str) -> Any:
            if raw.get(name) is None:
                raise ValueError(f"config.json of model_type {model_type!r} lacks the field {name!r}")
            return raw[name]

        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        max_positions = raw.get("max_position_embeddings") or _MAX_POSITIONS[model_type]
        num_heads = required("num_attention_heads")
        bias = bool(raw.get("attention_bias", False))
        return cls(
            vocab_size=required("vocab_size"),
            hidden_size=required("hidden_size"),
            num_layers=required("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=raw.get("num_key_value_heads", _KV_HEADS.get(model_type)) or num_heads,
            head_dim=raw.get("head_dim") or (128 if model_type == "qwen3" else required("hidden_size") // num_heads),
            intermediate_size=required("intermediate_size"),
            model_type=model_type,
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or _ROPE_THETA),
            rope_scaling=RopeScaling.from_hf(rope, max_positions),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=True if model_type == "qwen2" else bias,
            attention_output_bias=False if model_type == "qwen2" else bias,
            qk_norm=model_type == "qwen3",
            max_position_embeddings=max_positions,
            initializer_range=float(raw.get("initializer_range", 0.02)),
            dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32",
        )

    def to_hf(self) -> dict[str, Any]:
        """Return a `config.json` object from which transformers builds the same model, and `from_hf` this config.

        Raises:
          ValueError: No Hugging Face architecture of this `model_type` has this combination of bias and norm.
        """
        expected = {
            "qwen2": (True, False, False),
            "qwen3": (self.attention_bias, self.attention_bias, True),
            "llama": (self.attention_bias, self.attention_bias, False),
        }[self.model_type]
        actual = (self.attention_bias, self.attention_output_bias, self.qk_norm)
        if actual != expected:
            raise ValueError(
                f"a Hugging Face {self.model_type!r} has (attention_bias, attention_output_bias, qk_norm)={expected}, "
                f"this config {actual}: choose another model_type"
            )
        raw: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "hidden_act": "silu",
            "rope_theta": self.rope_theta,
            "rope_scaling": None if self.rope_scaling.kind == "default" else self.rope_scaling.to_hf(),
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "initializer_range": self.initializer_range,
            "torch_dtype": self.dtype,
        }
        if self.model_type != "qwen2":
            raw["attention_bias"] = self.attention_bias
        return raw
