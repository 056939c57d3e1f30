"""Conversion of llama.cpp's GGUF files to Hugging Face folders, without PyTorch.

    metadata -> config.json, generation_config.json
    tensors  -> model.safetensors     dequantised by the `gguf` package; rows of query and key in their original order
    tokens   -> tokenizer.json        byte-level BPE ("gpt2") or SentencePiece's BPE with byte fallback ("llama")

Sources: the GGUF specification (ggml, docs/gguf.md) for the names of metadata; llama.cpp's convert_hf_to_gguf.py for
the permutation of query and key and for the factors of llama3's rotary scaling.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from etils import epath
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from mlagent_jax.checkpoints import hugging_face, safetensors
from mlagent_jax.checkpoints.folders import whole_folder
from mlagent_jax.models.config import ModelConfig
from mlagent_jax.models.rope import frequencies
from mlagent_jax.models.tokenizer import WORD, Tokenizer

ARCHITECTURES = ("llama", "qwen2", "qwen3")
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
FLOATS = ("F32", "F16", "BF16")

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
"""Hugging Face names of tensors outside the layers, by their name in a GGUF file."""
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Hugging Face names of a layer's tensors, by their name in a GGUF file."""
ROPE_FACTORS = "rope_freqs.weight"
"""Tensor with the divisor of each rotary frequency: llama3's scaling, written out."""

CONTROL, USER_DEFINED, BYTE = 3, 4, 6
"""Kinds of tokens in `tokenizer.ggml.token_type`."""
_GPT2_WORD = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_WORD = WORD.replace(r"\p{N}|", r"\p{N}{1,3}|")


@dataclasses.dataclass(frozen=True)
class Words:
    """Splitting of text into words by a byte-level tokenizer, before it merges bytes.

    Attributes:
      expressions: regular expressions, applied one after the other.
      composes: whether text is composed (NFC) first.
      whole: whether a word that is a token skips the merges.
    """

    expressions: tuple[str, ...]
    composes: bool = False
    whole: bool = False


WORDS: Mapping[str, Words] = {
    "default": Words((_GPT2_WORD,)),
    "gpt-2": Words((_GPT2_WORD,)),
    "smollm": Words((r"\p{N}", _GPT2_WORD)),
    "qwen2": Words((WORD,), composes=True),
    "deepseek-r1-qwen": Words((WORD,), composes=True),
    "llama-bpe": Words((_LLAMA3_WORD,), whole=True),
    "llama3": Words((_LLAMA3_WORD,), whole=True),
    "llama-v3": Words((_LLAMA3_WORD,), whole=True),
}
"""Word splitting by `tokenizer.ggml.pre`, as in llama.cpp's llama-vocab.cpp and the tokenizers of these models."""


class GGUFError(ValueError):
    """A GGUF file is damaged or not supported; the message has the remedy."""


def import_gguf(path: str | os.PathLike[str], output: str | os.PathLike[str], dtype: str = "float32") -> ModelConfig:
    """Write the checkpoint in a GGUF file as a Hugging Face folder.

    Args:
      path: local file.
      output: folder to write, local or remote; it appears when it is complete.
      dtype: dtype of the written weights: float32, bfloat16 or float16.

    Returns:
      The config of the model.

    Raises:
      FileExistsError: `output` exists and is not an export.
      GGUFError: the file is damaged, or holds an architecture, a tensor, a quantisation or a tokenizer that is not
        supported.
    """
    file = _File(path)
    config = dataclasses.replace(ModelConfig.from_hf(file.config()), dtype=dtype)
    tensors = file.tensors(config)
    stored = np.dtype(safetensors.DTYPES[{"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]])
    with whole_folder(output) as folder:
        shapes = {name: (stored, shape) for name, (shape, _) in tensors.items()}
        safetensors.write(
            folder / hugging_face.SINGLE, shapes, lambda name: tensors[name][1]().astype(stored, copy=False)
        )
        ids = file.token_ids()
        hugging_face.write_json(epath.Path(folder / "config.json"), {**config.to_hf(), **ids})
        hugging_face.write_json(epath.Path(folder / hugging_face.GENERATION), ids)
        made = file.tokenizer(config)
        made.save_pretrained(folder)
        Tokenizer(made, epath.Path(folder)).check_loads_alike(folder)
    return config


class _File:
    """One GGUF file, memory-mapped; tensors are dequantised one at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import gguf
        except ImportError as error:
            raise GGUFError("reading GGUF files needs the package gguf: pip install '.[gguf]'") from error
        self._gguf, self._path = gguf, Path(path)
        if not self._path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        try:
            self._reader = gguf.GGUFReader(self._path)
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise GGUFError(f"{path} is no whole GGUF file ({error}): download it again") from error
        self._architecture = self._field("general.architecture")
        if self._architecture not in ARCHITECTURES:
            raise GGUFError(
                f"{path} holds the architecture {self._architecture!r}, which is not supported: "
                f"use one of {', '.join(ARCHITECTURES)}"
            )

    def _field(self, name: str, default: Any = None) -> Any:
        field = self._reader.get_field(name)
        return default if field is None else field.contents()

    def _own(self, name: str, default: Any = None) -> Any:
        return self._field(f"{self._architecture}.{name}", default)

    def _needed(self, name: str) -> Any:
        if (value := self._own(name)) is None:
            raise GGUFError(f"{self._path} lacks the field {self._architecture}.{name}")
        return value

    def config(self) -> dict[str, Any]:
        """Return a `config.json` of this model."""
        heads, width = self._needed("attention.head_count"), self._needed("embedding_length")
        head_dim = self._own("attention.key_length") or width // heads
        if self._own("rope.dimension_count", head_dim) != head_dim:
            raise GGUFError(f"{self._path}: rotary embeddings of a part of each head are not supported")
        names = {tensor.name for tensor in self._reader.tensors}
        raw = {
            "model_type": self._architecture,
            "vocab_size": len(self._field("tokenizer.ggml.tokens", ())) or self._needed("vocab_size"),
            "hidden_size": width,
            "num_hidden_layers": self._needed("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._own("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "intermediate_size": self._needed("feed_forward_length"),
            "max_position_embeddings": self._needed("context_length"),
            "rope_theta": float(self._own("rope.freq_base", 10_000.0)),
            # A float32 in the file: the shortest decimal number that is this float32.
            "rms_norm_eps": float(str(np.float32(self._needed("attention.layer_norm_rms_epsilon")))),
            "tie_word_embeddings": "output.weight" not in names,
        }
        if self._architecture != "qwen2":
            raw["attention_bias"] = "blk.0.attn_q.bias" in names
        if scaling := self._scaling(raw):
            raw["rope_scaling"] = scaling
        return raw

    def _scaling(self, raw: Mapping[str, Any]) -> dict[str, Any] | None:
        kind, factor = self._own("rope.scaling.type", "none"), self._own("rope.scaling.factor")
        factors = next((tensor for tensor in self._reader.tensors if tensor.name == ROPE_FACTORS), None)
        if factors is not None:
            return self._llama3(raw, np.asarray(factors.data, np.float32))
        if kind == "none" or factor in (None, 0.0, 1.0):
            return None
        if kind not in ("linear", "yarn"):
            raise GGUFError(f"{self._path}: rope.scaling.type {kind!r} is not supported: only linear and yarn are")
        found: dict[str, Any] = {"rope_type": kind, "factor": float(factor)}
        if kind == "yarn" and (original := self._own("rope.scaling.original_context_length")):
            found["original_max_position_embeddings"] = original
        return found

    def _llama3(self, raw: Mapping[str, Any], factors: np.ndarray) -> dict[str, Any]:
        """Return the scaling whose factors a file writes out; all Llama 3 models have these frequency factors."""
        scaling = {
            "rope_type": "llama3",
            "factor": float(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        plain = frequencies(ModelConfig.from_hf({**raw, "rope_scaling": None}))[0]
        scaled = frequencies(ModelConfig.from_hf({**raw, "rope_scaling": scaling}))[0]
        if not np.allclose(np.asarray(plain) / factors, np.asarray(scaled), rtol=1e-4):
            raise GGUFError(f"{self._path}: the factors in {ROPE_FACTORS} are those of no scaling that is supported")
        return scaling

    def tensors(self, config: ModelConfig) -> dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
        """Return shape and a function that dequantises, by name in a Hugging Face checkpoint."""
        found = {}
        for tensor in self._reader.tensors:
            if tensor.name == ROPE_FACTORS:
                continue
            kind = tensor.tensor_type.name
            if kind not in (*FLOATS, *QUANTISED):
                raise GGUFError(
                    f"{self._path}: tensor {tensor.name!r} is {kind}; supported are {', '.join((*FLOATS, *QUANTISED))}"
                )
            name = self._name(tensor.name)
            shape = tuple(int(size) for size in reversed(tensor.shape))
            found[name] = shape, self._reading(tensor, config)
        return found

    def _name(self, name: str) -> str:
        stem, _, kind = name.rpartition(".")
        block, _, inner = stem.partition(".")[2].partition(".")
        theirs = f"model.layers.{block}.{LAYER[inner]}" if stem.startswith("blk.") and inner in LAYER else TOP.get(stem)
        if theirs is None or kind not in ("weight", "bias"):
            raise GGUFError(f"{self._path} has tensor {name!r}, which is not supported in {self._architecture!r}")
        return f"{theirs}.{kind}"

    def _reading(self, tensor: Any, config: ModelConfig) -> Callable[[], np.ndarray]:
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(tensor.name.split(".")[-2])
        shape = tuple(int(size) for size in reversed(tensor.shape))

        def read() -> np.ndarray:
            array = self._gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
            return unpermuted(array, heads) if heads and self._architecture == "llama" else array

        return read

    def token_ids(self) -> dict[str, int]:
        """Return beginning, end and padding as config.json names them."""
        names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
        found = {ours: self._field(f"tokenizer.ggml.{theirs}") for ours, theirs in names.items()}
        return {name: int(value) for name, value in found.items() if value is not None}

    def tokenizer(self, config: ModelConfig) -> transformers.PreTrainedTokenizerFast:
        """Return the tokenizer with its special tokens and chat template."""
        kind, tokens = self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.tokens")
        if tokens is None:
            raise GGUFError(f"{self._path} has no tokenizer")
        if kind == "gpt2":
            cut = self._field("tokenizer.ggml.pre", "default")
            if cut not in WORDS:
                raise GGUFError(f"{self._path} cuts text as {cut!r}: supported are {', '.join(WORDS)}")
            backend = byte_level(tokens, self._field("tokenizer.ggml.merges") or [], WORDS[cut])
        elif kind == "llama":
            scores = self._field("tokenizer.ggml.scores")
            prefix = bool(self._field("tokenizer.ggml.add_space_prefix", True))
            backend = sentencepiece(tokens, scores, prefix)
        else:
            raise GGUFError(f"{self._path} has a tokenizer of the kind {kind!r}: supported are 'gpt2' and 'llama'")
        for token, type_ in zip(tokens, self._field("tokenizer.ggml.token_type") or (), strict=False):
            if type_ in (CONTROL, USER_DEFINED):
                backend.add_tokens([AddedToken(token, normalized=False, special=type_ == CONTROL)])
        named = {
            "bos_token": "bos_token_id",
            "eos_token": "eos_token_id",
            "unk_token": "unknown_token_id",
            "pad_token": "padding_token_id",
        }
        ids = {name: self._field(f"tokenizer.ggml.{field}") for name, field in named.items()}
        special = {name: tokens[index] for name, index in ids.items() if index is not None}
        made = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, model_max_length=config.max_position_embeddings, **special
        )
        made.chat_template = self._field("tokenizer.chat_template")
        return made


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of the rows of query or key.

    llama.cpp rotates neighbouring rows (2i, 2i + 1) of a head, transformers rows (i, i + half).

    Args:
      rows: [heads * size, ...], each head's halves interleaved.
      heads: number of heads.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def byte_level(tokens: list[str], merges: list[str], words: Words) -> Backend:
    """Make a byte-level BPE tokenizer."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    backend = Backend(models.BPE(vocabulary, pairs, ignore_merges=words.whole))
    if words.composes:
        backend.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(word), behavior="isolated") for word in words.expressions]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def sentencepiece(tokens: list[str], scores: list[float], prefix: bool) -> Backend:
    """Make a BPE tokenizer with byte fallback as SentencePiece's; a file holds scores and no merges.

    A token is the merge of each two tokens that spell it; merges apply by falling score.
    """
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = []
    for token, index in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    pairs = [(left, right) for *_, left, right in sorted(merges)]
    backend = Backend(models.BPE(vocabulary, pairs, unk_token=tokens[0], fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Replace(" ", "\u2581")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *spaces] if prefix else spaces)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend
