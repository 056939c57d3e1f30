"""Checkpoints in and out, against transformers and safetensors themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from mlagent_jax import models
from mlagent_jax.checkpoints import hugging_face
from mlagent_jax.checkpoints.safetensors import TensorFileError
from mlagent_jax.models.tokenizer import Tokenizer, train_tokenizer
from mlagent_jax.runtime import processes

MATRIX = {  # model_type, tied embeddings, further fields
    "qwen2": ("qwen2", False, {}),
    "qwen2-tied": ("qwen2", True, {}),
    "qwen3": ("qwen3", False, {"head_dim": 12}),
    "qwen3-tied-bias": ("qwen3", True, {"head_dim": 6, "attention_bias": True}),
    "llama": ("llama", False, {}),
    "llama-tied": ("llama", True, {"num_key_value_heads": 4}),
}
VOCAB = 98


def make_checkpoint(folder, name, dtype=torch.float32, **saving):
    """A checkpoint with random weights, biases and norms too, written by transformers."""
    model_type, tied, fields = MATRIX[name]
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    tokens = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    fields = {**sizes, **heads, **tokens, "tie_word_embeddings": tied, **fields}
    config = transformers.AutoConfig.for_model(model_type, **fields)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    model.save_pretrained(folder, **saving)
    return model.eval()


def make_params(config):
    """A graph and random parameters for it, faster than `models.create`."""
    rng = np.random.default_rng(0)
    graph, shapes = models.abstract(config)
    return graph, jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def our_logits(graph, params, tokens):
    return np.asarray(models.logits(graph, params, models.hidden_states(graph, params, jnp.asarray(tokens))))


def their_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


def tensors_of(folder):
    """All tensors of a folder, read by the safetensors package, as (dtype, shape, bytes)."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        for name, array in safetensors.numpy.load_file(path).items():
            found[name] = (array.dtype, array.shape, array.tobytes())
    return found


QUICK = ("qwen2", "qwen3-tied-bias", "llama")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MATRIX]
)
def test_a_checkpoint_of_transformers_gives_its_logits_and_goes_back_bit_by_bit(tmp_path, name):
    model = make_checkpoint(tmp_path / "theirs", name)
    config, graph, params = hugging_face.load(tmp_path / "theirs", dtype=jnp.float32)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 9))
    expected = their_logits(model, tokens)
    np.testing.assert_allclose(our_logits(graph, params, tokens), expected, atol=1e-4)

    hugging_face.save(tmp_path / "ours", config, params)
    assert tensors_of(tmp_path / "ours") == tensors_of(tmp_path / "theirs")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    np.testing.assert_array_equal(their_logits(exported, tokens), expected)


@pytest.mark.slow
def test_weights_of_our_own_agree_with_transformers_after_export(tmp_path):
    config = models.ModelConfig(
        *(VOCAB, 32, 2, 4, 2, 8, 48), model_type="qwen3", qk_norm=True, tie_word_embeddings=True, dtype="float32"
    )
    graph, params = make_params(config)
    hugging_face.save(tmp_path / "export", config, params)
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 9))
    np.testing.assert_allclose(our_logits(graph, params, tokens), their_logits(exported, tokens), atol=1e-4)
    assert hugging_face.read_config(tmp_path / "export") == config


@pytest.mark.parametrize("fails_after", [0, 3])
def test_an_export_that_fails_still_takes_its_part_in_every_gather(tmp_path, monkeypatch, fails_after):
    """The other processes wait in the gathers of all tensors, and are then told of the failure."""
    config = models.ModelConfig(*(VOCAB, 32, 2, 4, 2, 8, 48), attention_bias=True, dtype="float32")
    _, params = make_params(config)
    fetched, fetch = [], processes.fetch
    monkeypatch.setattr(processes, "fetch", lambda array: fetched.append(1) or fetch(array))
    hugging_face.save(tmp_path / "whole", config, params)
    count = len(fetched)
    fetched.clear()
    if fails_after:

        def full(path, tensors, read):
            for name in list(tensors)[:fails_after]:
                read(name)
            raise OSError("no space left")

        monkeypatch.setattr(hugging_face.tensor_files, "write", full)
    else:
        (tmp_path / "export").mkdir()
        (tmp_path / "export" / "own.txt").write_text("not an export")
    with pytest.raises(OSError, match="no space left" if fails_after else "export"):
        hugging_face.save(tmp_path / "export", config, params)
    assert len(fetched) == count


@pytest.mark.slow
def test_sharded_bfloat16_goes_in_and_out_bit_by_bit(tmp_path):
    make_checkpoint(tmp_path / "theirs", "qwen2", torch.bfloat16, max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    config, _, params = hugging_face.load(tmp_path / "theirs")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    hugging_face.save(tmp_path / "ours", config, params, max_shard_size=15_000)
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_size < 15_000 + 5_000 for path in files)
    assert tensors_of(tmp_path / "ours") == tensors_of(tmp_path / "theirs")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    again = hugging_face.load(tmp_path / "ours")[2]
    assert jax.tree.all(jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), again, params))


def test_the_dtype_of_an_export_can_be_chosen(tmp_path):
    make_checkpoint(tmp_path / "theirs", "llama")
    config, _, params = hugging_face.load(tmp_path / "theirs")
    hugging_face.save(tmp_path / "ours", config, params, dtype="bfloat16")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    expected = np.asarray(params["embedder"]["embedding"].astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(loaded.model.embed_tokens.weight.detach().float().numpy(), expected)


@pytest.mark.slow
def test_parts_go_straight_to_the_devices_that_own_them(tmp_path):
    """On 8 simulated devices, in a process of its own: the same parameters, each where the rules put it."""
    make_checkpoint(tmp_path / "theirs", "qwen2", max_shard_size="40KB")
    script = """
import sys, jax, numpy as np
from mlagent_jax.models import abstract
from mlagent_jax.checkpoints import hugging_face
from mlagent_jax.parallelism import make_mesh
mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
config, _, sharded = hugging_face.load(sys.argv[1], mesh=mesh)
whole = hugging_face.load(sys.argv[1])[2]
target = abstract(config, mesh=mesh)[1]
for got, placed, expected in zip(*map(jax.tree.leaves, (sharded, target, whole)), strict=True):
    assert got.sharding.is_equivalent_to(placed.sharding, got.ndim), (got.sharding, placed.sharding)
    assert np.array_equal(np.asarray(got), np.asarray(expected))
kernel = sharded["layers"]["mlp"]["up"]["kernel"]
assert kernel.addressable_shards[0].data.size * 4 == kernel.size
hugging_face.save(sys.argv[2], config, sharded)
print("whole")
"""
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "theirs", tmp_path / "ours"],
        env={**os.environ, **flags, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "whole", done.stderr
    assert tensors_of(tmp_path / "ours") == tensors_of(tmp_path / "theirs")


@pytest.mark.slow
def test_an_import_takes_little_more_of_the_host_than_the_parameters(tmp_path):
    """Here the host's memory is the device's too: what is beyond the parameters is the host's share of the work."""
    config = models.ModelConfig(8192, 1024, 5, 8, 2, 128, 2816, model_type="llama", dtype="bfloat16")
    shapes = models.abstract(config, dtype=jnp.bfloat16)[1]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    shard = 40_000_000
    hugging_face.save(tmp_path / "model", config, params, max_shard_size=shard)
    script = """
import re, sys, threading, jax
from pathlib import Path
from mlagent_jax.checkpoints import hugging_face


def held():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])


def watch():
    while not done.wait(0.001):
        peaks.append(held())


jax.numpy.ones(3).block_until_ready()
before, peaks, done = held(), [], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
params = hugging_face.load(sys.argv[1])[2]
done.set()
watcher.join()
print(max(peaks) - before - sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""
    found = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "model"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) < shard + 40_000_000, "a shard, and what compiling its few programs takes"
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > 3 * shard


def edit_tensors(folder, change):
    """Rewrites a folder with one weight file through `change`, a function of the dict of arrays."""
    path = folder / "model.safetensors"
    tensors = dict(safetensors.numpy.load_file(path))
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def test_a_truncated_file_names_the_tensor_that_it_breaks(tmp_path):
    make_checkpoint(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(TensorFileError, match=r"truncated: tensor 'model\.norm\.weight'"):
        hugging_face.load(tmp_path)
    for length in (0, 5, 100):
        path.write_bytes(whole[:length])
        with pytest.raises(TensorFileError, match=f"{length} bytes and no whole header"):
            hugging_face.load(tmp_path)


def test_a_missing_tensor_a_wrong_shape_and_an_unknown_tensor_are_named(tmp_path):
    name = "model.layers.1.self_attn.k_proj.weight"
    for change, message in [
        (lambda tensors: tensors.pop(name), rf"lacks tensor '{name}'"),
        (lambda tensors: tensors.update({name: tensors[name][:8]}), rf"'{name}' has shape \[8, 32\].*\[24, 32\]"),
        (lambda tensors: tensors.update({"model.extra": tensors[name]}), r"has tensor 'model\.extra'"),
        (lambda tensors: tensors.update({name: tensors[name].astype(np.int8)}), rf"'{name}' is I8"),
    ]:
        make_checkpoint(tmp_path, "qwen3")
        edit_tensors(tmp_path, change)
        with pytest.raises(TensorFileError, match=message):
            hugging_face.load(tmp_path)


def test_what_old_or_tied_checkpoints_carry_beside_is_ignored(tmp_path):
    model = make_checkpoint(tmp_path, "llama-tied")
    head = model.lm_head.weight.detach().numpy().copy()
    extra = {"lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    edit_tensors(tmp_path, lambda tensors: tensors.update(extra))
    assert "head" not in hugging_face.load(tmp_path)[2]


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_counts(tmp_path):
    """As in transformers, which believes the weights and not the config."""
    make_checkpoint(tmp_path, "llama-tied")
    head = np.random.default_rng(1).normal(size=(VOCAB, 32)).astype(np.float32)
    edit_tensors(tmp_path, lambda tensors: tensors.update({"lm_head.weight": head}))
    config, graph, params = hugging_face.load(tmp_path)
    assert not config.tie_word_embeddings
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = np.arange(12).reshape(1, 12)
    np.testing.assert_allclose(our_logits(graph, params, tokens), their_logits(theirs, tokens), atol=2e-4, rtol=0)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 11421896\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"model_type": "lla', r"config\.json is not complete JSON"),
        ("config.json", "[]", r"config\.json holds a list"),
        ("config.json", POINTER, r"config\.json is a Git LFS pointer"),
        ("model.safetensors", POINTER, r"model\.safetensors is a Git LFS pointer"),
        ("model.safetensors.index.json", "{}", r"index\.json has no weight_map"),
        ("model.safetensors.index.json", POINTER, r"index\.json is a Git LFS pointer"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    make_checkpoint(tmp_path, "llama")
    if "index" in name:
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        hugging_face.load(tmp_path)


def test_an_index_beside_the_one_file_is_stale_and_a_byte_order_mark_is_passed_over(tmp_path):
    make_checkpoint(tmp_path, "llama")
    stale = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(stale))
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "config.json").read_bytes())
    assert hugging_face.load(tmp_path)[0].model_type == "llama"


def test_a_lost_file_or_folder_is_named(tmp_path):
    make_checkpoint(tmp_path / "model", "llama", max_shard_size="20KB")
    lost = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(TensorFileError, match=rf"{lost.name} does not exist: the index says it holds tensor 'model"):
        hugging_face.load(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        hugging_face.load(tmp_path)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    config = models.ModelConfig(
        *(400, 32, 2, 4, 2, 8, 48), model_type="qwen2", attention_bias=True, tie_word_embeddings=True, dtype="float32"
    )
    corpus, folder = [Path(hugging_face.__file__).read_text()], tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(corpus, config.vocab_size, ["Next:\n"], folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}\nNext:")
    tokenizer = Tokenizer.load(folder)
    return config, make_params(config)[1], tokenizer


def test_an_export_has_all_that_a_user_of_transformers_needs(tmp_path, ours):
    config, params, tokenizer = ours
    hugging_face.save(tmp_path / "export", config, params, tokenizer)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    text = "def  f():\n\n    return é  # 🎉\nNext:\n"
    assert loaded(text)["input_ids"] == tokenizer.encode(text)
    assert loaded.decode(tokenizer.encode(text)) == text
    said = [{"role": "user", "content": text}]
    assert loaded.apply_chat_template(said, tokenize=False) == f"{text}\nNext:"
    assert model.config.model_type == "qwen2"
    assert model.config.vocab_size == len(loaded) == tokenizer.vocab_size
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_id
    assert model.generation_config.pad_token_id == tokenizer.pad_id


def test_an_export_says_of_generation_what_the_checkpoint_said(tmp_path, ours):
    """By way of a run's folder, as `describe` makes it and `tools/export_hf.py` reads it."""
    config, params, tokenizer = ours
    said = b'{\n "do_sample": true,\n "temperature": 0.7,\n "eos_token_id": [1, 7], "bos_token_id": 3\n}'
    hugging_face.save(tmp_path / "theirs", config, params, tokenizer)
    (tmp_path / "theirs" / "generation_config.json").write_bytes(said)
    raw = json.loads((tmp_path / "theirs" / "config.json").read_text())
    ids = {"bos_token_id": 3, "eos_token_id": [1, 7]}
    raw.pop("pad_token_id")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(raw | ids))

    hugging_face.describe(tmp_path / "run", config, tokenizer, hugging_face.read_origin(tmp_path / "theirs"))
    origin = hugging_face.read_origin(tmp_path / "run")
    hugging_face.save(tmp_path / "ours", config, params, tokenizer, origin=origin)
    assert (tmp_path / "ours" / "generation_config.json").read_bytes() == said
    assert json.loads((tmp_path / "ours" / "config.json").read_text()) == raw | ids
    loaded = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert (loaded.temperature, loaded.eos_token_id, loaded.bos_token_id) == (0.7, [1, 7], 3)


def test_an_export_that_fails_leaves_nothing_and_keeps_the_one_before(tmp_path, ours, monkeypatch):
    config, params, tokenizer = ours
    hugging_face.save(tmp_path / "export", config, params, tokenizer)
    before = tensors_of(tmp_path / "export")
    broken = {**params, "final_norm": {"scale": None}, "adapter": {"a": jnp.ones(2)}}
    with pytest.raises(ValueError, match="'adapter/a' has no place"):
        hugging_face.save(tmp_path / "export", config, broken, tokenizer)
    monkeypatch.setattr(tokenizer, "encode", lambda text: [])  # as of another kind
    with pytest.raises(ValueError, match="splits text differently"):
        hugging_face.save(tmp_path / "export", config, params, tokenizer)
    assert tensors_of(tmp_path / "export") == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_nothing_under_the_name(tmp_path):
    script = """
import os, sys, signal, jax, jax.numpy as jnp
from mlagent_jax import models
from mlagent_jax.checkpoints import hugging_face
from mlagent_jax.checkpoints import safetensors as tensor_files
config = models.ModelConfig(50, 32, 2, 4, 2, 8, 48, model_type="llama")
params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), models.abstract(config)[1])
write, written = tensor_files.write, []
def write_and_die(*arguments):
    write(*arguments)
    written.append(arguments)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
tensor_files.write = write_and_die
hugging_face.save(sys.argv[1], config, params, max_shard_size=20_000)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "export"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == -9
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_an_export_replaces_an_older_one_but_no_other_folder(tmp_path, ours):
    config, params, _ = ours
    hugging_face.save(tmp_path / "export", config, params)
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    hugging_face.save(tmp_path / "export", config, other, max_shard_size=30_000)
    assert not (tmp_path / "export" / "model.safetensors").exists()
    loaded = hugging_face.load(tmp_path / "export")[2]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), loaded, other))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("irreplaceable")
    with pytest.raises(FileExistsError, match="is no export"):
        hugging_face.save(tmp_path / "thesis", config, params)
