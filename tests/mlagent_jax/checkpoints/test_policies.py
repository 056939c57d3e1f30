"""Every place of a run is a policy, by one loader; and what ends its replies is one definition."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from environments import tasks
from environments.protocol import State
from mlagent_jax import models
from mlagent_jax.agents.critic import Critic
from mlagent_jax.agents.prompts import Renderer
from mlagent_jax.checkpoints import hugging_face, policies
from mlagent_jax.checkpoints.orbax import Checkpointer, CheckpointError
from mlagent_jax.models import lora
from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.sampling import Sampler, load
from mlagent_jax.sampling.weights import apart
from mlagent_jax.settings.policy import PromptConfig

SETTINGS = models.LoRA(rank=2, alpha=4.0, targets=("query", "down"))


def equal(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), one, other))


def write_run(workdir, base, adapters=(), whole=(), **settings):
    """A workdir with steps 2, 3, ... of the stages sft and rl."""
    (workdir / "checkpoints").mkdir(parents=True)
    section = {"rank": SETTINGS.rank, "alpha": SETTINGS.alpha, "targets": list(SETTINGS.targets)} if adapters else {}
    config = {"policy": {"checkpoint": str(base)}, "lora": section, "stages": ["sft", "rl"], "seed": 0, **settings}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "run.json").write_text(json.dumps({"done": ["sft", "rl"]}))
    start = policies.load(base)
    for stage, saved in zip(("sft", "rl"), adapters or whole, strict=True):
        folder = workdir / "checkpoints" / stage
        hugging_face.describe(folder / "model", start.config, start.tokenizer, start.origin)
        with Checkpointer(folder) as steps:
            for step, params in enumerate(saved, start=2):
                steps.save(step, {"policy": params, "optimizer": jnp.ones(2)}, {})


@pytest.fixture(scope="module")
def base(speaker):
    return policies.load(speaker)


@pytest.fixture(scope="module")
def adapted(base, speaker, tmp_path_factory):
    """(workdir of a run with adapters, those of sft, those of rl)"""
    graph = lora.adapted(base.graph, SETTINGS)
    rng = np.random.default_rng(0)

    def adapters():
        return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), lora.abstract(graph))

    first, older, second = adapters(), adapters(), adapters()
    workdir = tmp_path_factory.mktemp("run") / "it"
    write_run(workdir, speaker, adapters=((first,), (older, second)))
    return workdir, first, older, second


def test_adapters_load_merged_from_every_place(adapted, base):
    workdir, first, older, second = adapted
    sft = lora.merge(base.params, first, SETTINGS)
    expected = {
        "": lora.merge(sft, second, SETTINGS),
        "checkpoints/rl": lora.merge(sft, second, SETTINGS),
        "checkpoints/rl/2": lora.merge(sft, older, SETTINGS),
        "checkpoints/sft": sft,
    }
    for place, params in expected.items():
        assert equal(policies.load(workdir / place).params, params), place
    assert policies.load(workdir).params["embedder"]["embedding"].dtype == jnp.float32
    half = policies.load(workdir, policies.Placement(dtype="bfloat16"))
    assert half.params["embedder"]["embedding"].dtype == jnp.bfloat16


def test_an_adapted_run_samples(adapted):
    generated = Sampler(*load(adapted[0]), slots=2).generate(["def f(x):"], max_new_tokens=4)
    assert generated[0][0].token_ids


def test_a_value_head_is_loaded_with_its_policy_and_judges_the_end_of_a_prompt(base, speaker, tmp_path):
    rng = np.random.default_rng(0)
    head = {"kernel": jnp.asarray(rng.normal(size=base.config.hidden_size), jnp.float32), "bias": jnp.float32(0.25)}
    write_run(tmp_path / "it", speaker, whole=((base.params,), (base.params,)))
    assert policies.load_value_head(tmp_path / "it") is None
    assert policies.load_value_head(speaker) is None
    with Checkpointer(tmp_path / "it" / "checkpoints" / "rl") as steps:
        steps.save(5, {"policy": base.params, "critic": head, "optimizer": jnp.ones(2)}, {})
    loaded = policies.load_value_head(tmp_path / "it")
    assert equal(loaded, head)
    spec = tasks.get("micro-rings-0").spec
    state = State("micro-rings-0@1", (), "s", "# %% model\nmodel = 1\n", 0.5)
    renderer = Renderer(base.tokenizer, PromptConfig(max_prompt_tokens=2048), {state.task: spec})
    prompt = renderer.encode(state)
    hidden = models.hidden_states(base.graph, base.params, jnp.asarray([prompt]))[0, -1]
    expected = float(sum(h * k for h, k in zip(hidden.tolist(), head["kernel"].tolist(), strict=True)) + 0.25)
    whole = policies.load(tmp_path / "it")
    (value,) = Critic(whole.graph, apart(whole.params), loaded, renderer).values([state])
    assert value == pytest.approx(expected, abs=1e-3)
    short = Renderer(base.tokenizer, PromptConfig(max_prompt_tokens=4), {state.task: spec})
    assert Critic(whole.graph, base.params, loaded, short).values([state]) == [None]


def test_adapters_of_an_unknown_kind_are_said_to_be_so(adapted, tmp_path):
    shutil.copytree(adapted[0] / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises((ValueError, FileNotFoundError), match=r"adapters alone|has no saved policy"):
        policies.load(tmp_path / "checkpoints" / "sft")


@pytest.mark.parametrize("content", [(), ("arrays",), ("_CHECKPOINT_METADATA",)], ids=str)
def test_a_step_that_was_never_finished_is_not_the_newest(base, speaker, tmp_path, content):
    other = jax.tree.map(lambda leaf: leaf + 1, base.params)
    write_run(tmp_path / "run", speaker, whole=((base.params,), (base.params, other)))
    stage = tmp_path / "run" / "checkpoints" / "rl"
    (stage / "9").mkdir()
    for name in content:
        shutil.copytree(stage / "3" / name, stage / "9" / name) if name == "arrays" else shutil.copy(
            stage / "3" / name, stage / "9" / name
        )
    assert equal(policies.load(tmp_path / "run").params, other)
    with pytest.raises(CheckpointError, match="rl@9 was not kept, there are 2, 3"):
        policies.load(stage / "9")
    for step in ("2", "3"):
        shutil.rmtree(stage / step)
    assert policies.locate(tmp_path / "run").stage == "sft", "a stage without a whole step is passed over"
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "sft")
    with pytest.raises(FileNotFoundError, match="no saved policy yet"):
        policies.load(tmp_path / "run")


def test_more_tokens_than_rows_are_refused_where_they_are_loaded(speaker, tmp_path):
    shutil.copytree(speaker, tmp_path / "it")
    path = tmp_path / "it" / "tokenizer.json"
    described = json.loads(path.read_text())
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    described["added_tokens"] += [{**token, "id": 300 + place, "content": f"<new{place}>"} for place in range(9)]
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"has 309 tokens and the model's embedding 304 rows"):
        policies.load(tmp_path / "it")


CHAT = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def chat_folder(speaker, folder, generation=None, config=None, template=CHAT):
    """A checkpoint with a chat's tokens 300 and 301, whose files name what they are told to as the end."""
    shutil.copytree(speaker, folder)
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = ("<|im_start|>", "<|im_end|>")
    described["added_tokens"] += [{**token, "id": 300 + place, "content": name} for place, name in enumerate(names)]
    path.write_text(json.dumps(described))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, "eos_token_id": config}))
    return folder


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"template": ""}, {1}),
        ({}, {1, 301}),
        ({"template": "", "generation": [7, 301]}, {1, 7, 301}),
        ({"template": "", "generation": 7, "config": [9]}, {1, 7, 9}),
        ({"template": "", "config": [7, 9]}, {1, 7, 9}),
        ({"template": "{{ raise_exception('no') }}"}, {1}),
    ],
    ids=str,
)
def test_what_ends_a_reply_is_one_set_wherever_it_is_asked_for(speaker, tmp_path, files, ends):
    folder = chat_folder(speaker, tmp_path / "it", **files)
    model, tokenizer = load(folder)
    assert set(tokenizer.stop_ids) == set(model.stop_token_ids) == ends
    assert set(Sampler(model, tokenizer)._config.stop_token_ids) == ends
    renderer = Renderer(tokenizer, PromptConfig(), {})
    for end in ends:
        assert renderer.decode_action([*tokenizer.encode("Action: x"), end]) == "Action: x"
    policy = policies.load(folder)
    hugging_face.save(tmp_path / "out", policy.config, policy.params, policy.tokenizer, origin=policy.origin)
    assert set(Tokenizer.load(tmp_path / "out").stop_ids) == ends, "an export names what its origin does"
    named = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert files.get("generation") is not None or set(named if isinstance(named, list) else [named]) == ends
