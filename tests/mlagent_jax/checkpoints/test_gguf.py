"""GGUF files in: the same logits and tokens as transformers reads from the same file; what is unsupported, by name."""

import json
import subprocess
import sys

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import pre_tokenizers

from mlagent_jax import models
from mlagent_jax.checkpoints import hugging_face
from mlagent_jax.checkpoints.gguf import WORDS, GGUFError, byte_level, import_gguf, sentencepiece, unpermuted
from mlagent_jax.models.tokenizer import Tokenizer, train_tokenizer

CORPUS = ["def f(x):\n    return x + 12\nfrom sklearn import svm\n" * 3, "x = [ 1,  2]\n\tcaf\u00e9 \U0001f389"]
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}
THEIRS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
THEIRS |= {"self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
THEIRS |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
THEIRS |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def permuted(rows, heads):
    """llama.cpp's order, as its convert_hf_to_gguf.py makes it."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write(path, kind, quantised=None, tied=True, pre="gpt-2", extra=(), vocabulary=None):
    """A tiny model of random weights in a GGUF file, with a byte-level vocabulary."""
    torch.manual_seed(0)
    head = 128 if kind == "qwen3" else 16  # transformers reads no other from a GGUF of Qwen3
    config = transformers.AutoConfig.for_model(kind, **SHAPE, head_dim=head, tie_word_embeddings=tied)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.3 + ("norm" in name))
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(head)
    writer.add_rope_freq_base(50_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    tokens, merges = vocabulary
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    for name, tensor in model.state_dict().items():
        stem, _, end = name.rpartition(".")
        if tied and stem == "lm_head":
            continue
        inner = stem.removeprefix("model.layers.").partition(".")[2]
        ours = TOP.get(stem) or f"blk.{stem.split('.')[2]}.{THEIRS[inner]}"
        array = tensor.numpy()
        if kind == "llama" and ours.endswith(("attn_q", "attn_k")):
            array = permuted(array, 4 if ours.endswith("q") else 2)
        if quantised and array.ndim == 2:
            data = gguf.quants.quantize(array, quantised)
            writer.add_tensor(f"{ours}.{end}", data, raw_dtype=quantised)
        else:
            writer.add_tensor(f"{ours}.{end}", array.astype(np.float32))
    for name, array in extra:
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    train_tokenizer(CORPUS, 280, ["<|im_start|>"], folder)
    model = json.loads((folder / "tokenizer.json").read_text())
    by_id = {index: token for token, index in model["model"]["vocab"].items()}
    by_id |= {added["id"]: added["content"] for added in model["added_tokens"]}
    tokens = [by_id.get(index, f"<|unused{index}|>") for index in range(SHAPE["vocab_size"])]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["model"]["merges"]]
    return tokens, merges


@pytest.mark.parametrize(
    ("kind", "quantised", "tied"),
    [
        ("llama", gguf.GGMLQuantizationType.Q4_1, True),
        ("llama", gguf.GGMLQuantizationType.Q8_0, False),
        ("qwen2", gguf.GGMLQuantizationType.Q5_0, True),
        ("qwen3", None, False),
    ],
)
def test_logits_are_those_that_transformers_computes_from_the_same_file(tmp_path, vocabulary, kind, quantised, tied):
    path = write(
        tmp_path / "model.gguf", kind, quantised, tied, "qwen2" if kind != "llama" else "gpt-2", (), vocabulary
    )
    config = import_gguf(path, tmp_path / "ours")
    assert (config.model_type, config.rope_theta, config.rms_norm_eps) == (kind, 50_000.0, 1e-6)
    assert config.tie_word_embeddings == tied

    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    ).eval()
    ids = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (2, 24))
    _, graph, params = hugging_face.load(tmp_path / "ours", dtype=jnp.float32)
    ours = models.logits(graph, params, models.hidden_states(graph, params, jnp.asarray(ids)))
    with torch.no_grad():
        theirs = reference(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4, rtol=0)


def test_the_folder_is_whole_and_says_what_the_file_says(tmp_path, vocabulary):
    path = write(tmp_path / "model.gguf", "llama", vocabulary=vocabulary)
    import_gguf(path, tmp_path / "ours", "bfloat16")
    tokenizer = Tokenizer.load(tmp_path / "ours")
    end = vocabulary[0].index("<|endoftext|>")
    assert tokenizer.eos_id == end and tokenizer.has_chat_template
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["torch_dtype"], config["eos_token_id"]) == ("bfloat16", end)
    assert json.loads((tmp_path / "ours" / "generation_config.json").read_text())["eos_token_id"] == end
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in (*CORPUS, "x<|im_start|>y", "\u65e5\u672c \u202e\r\n\t  "):
        expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokenizer.encode(text) == expected
        assert tokenizer.decode(expected) == text


def test_digits_stand_alone_where_the_file_says_smollm():
    """As the tokenizer of SmolLM2 on the hub does; transformers' reading of a GGUF takes them for ordinary words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = [*alphabet, "\u0120\u0120", "12", "\u01201"], ["\u0120 \u0120", "1 2", "\u0120 1"]
    ours = byte_level(tokens, merges, WORDS["smollm"])
    reference = tokenizers.Tokenizer.from_str(ours.to_str())
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in ("x =  12", "a 1", "[ 1,  2]\n   34"):
        assert ours.encode(text).tokens == reference.encode(text).tokens
    assert ours.encode("x =  12").tokens[-3:] == ["\u0120\u0120", "1", "2"]


def test_sentencepiece_spells_what_it_does_not_know_in_bytes():
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "ab", "\u2581ab"]
    scores = [0.0] * 257 + [-5.0, -4.0, -3.0, -2.0, -1.0]
    made = sentencepiece(tokens, scores, prefix=True)
    assert made.encode("ab ab").tokens == ["\u2581ab", "\u2581ab"]
    assert made.encode("\u00e9").tokens == ["\u2581", "<0xC3>", "<0xA9>"]
    assert made.decode(made.encode("ab \u00e9").ids) == "ab \u00e9"


def test_query_rows_come_back_in_order():
    rows = np.arange(48).reshape(24, 2)
    np.testing.assert_array_equal(unpermuted(permuted(rows, 3), 3), rows)


def test_llama3_scaling_is_read_back_from_its_factors(tmp_path, vocabulary):
    from mlagent_jax.models.config import ModelConfig
    from mlagent_jax.models.rope import frequencies

    raw = {**SHAPE, "model_type": "llama", "rope_theta": 50_000.0}
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    factors = (
        frequencies(ModelConfig.from_hf(raw))[0] / frequencies(ModelConfig.from_hf({**raw, "rope_scaling": scaling}))[0]
    )
    path = write(tmp_path / "model.gguf", "llama", extra=[("rope_freqs.weight", factors)], vocabulary=vocabulary)
    found = import_gguf(path, tmp_path / "ours").rope_scaling
    assert (found.kind, found.factor, found.original_max_position_embeddings) == ("llama3", 8.0, 8192)
    path = write(
        tmp_path / "other.gguf", "llama", extra=[("rope_freqs.weight", factors[::-1].copy())], vocabulary=vocabulary
    )
    with pytest.raises(GGUFError, match="no scaling that is supported"):
        import_gguf(path, tmp_path / "other")


def test_what_is_not_supported_is_named(tmp_path, vocabulary):
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(GGUFError, match="architecture 'mamba'"):
        import_gguf(tmp_path / "mamba.gguf", tmp_path / "out")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "mamba.gguf").read_bytes()[:20])
    with pytest.raises(GGUFError, match="no whole GGUF file"):
        import_gguf(tmp_path / "cut.gguf", tmp_path / "out")
    extra = [("blk.0.ffn_gate_inp.weight", np.zeros((2, 64), np.float32))]
    path = write(tmp_path / "experts.gguf", "llama", extra=extra, vocabulary=vocabulary)
    with pytest.raises(GGUFError, match=r"tensor 'blk.0.ffn_gate_inp.weight'"):
        import_gguf(path, tmp_path / "out")
    path = write(tmp_path / "words.gguf", "llama", pre="tekken", vocabulary=vocabulary)
    with pytest.raises(GGUFError, match="cuts text as 'tekken'"):
        import_gguf(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_folder_or_says_why_not(tmp_path, vocabulary):
    path = write(tmp_path / "model.gguf", "llama", vocabulary=vocabulary)
    program = [sys.executable, "tools/import_gguf.py", f"--output={tmp_path / 'ours'}"]
    done = subprocess.run([*program, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'ours'}: llama, 2 layers of width 64, float32\n"
    done = subprocess.run([*program, tmp_path / "none.gguf"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path / 'none.gguf'} does not exist\n")
