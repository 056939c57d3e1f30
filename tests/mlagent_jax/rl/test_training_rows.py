"""A step on packed rows with shared prompts is the step on one row for each action; a run needs few shapes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlagent_jax import models
from mlagent_jax.models import lora
from mlagent_jax.models.packing import Sample
from mlagent_jax.rl import ppo
from mlagent_jax.rl.learner import minibatches
from mlagent_jax.rl.rows import RowPacker, place
from mlagent_jax.runs.devices import Devices
from mlagent_jax.runtime import processes
from mlagent_jax.settings.policy import MeshConfig, PromptConfig
from mlagent_jax.settings.schema import Config
from mlagent_jax.settings.stages import RLConfig

SHAPE = models.ModelConfig(40, 16, 2, 4, 2, 8, 32, attention_bias=True)
RNG = np.random.default_rng(0)
PROMPTS = [tuple(RNG.integers(3, 40, size)) for size in (70, 9, 1, 30)]
SAMPLES = [Sample(p, tuple(RNG.integers(3, 40, size))) for p in PROMPTS for size in RNG.integers(1, 9, 4)]
COUNTED = [i for i in range(len(SAMPLES)) if i != 5]  # an infrastructure error
RL = RLConfig(states=4, samples=4, learning_rate=1e-2, kl_estimator="k3", entropy_coefficient=0.01, micro_tokens=128)


def packer(shards=1, single=False, **settings):
    config = Config(
        prompt=PromptConfig(max_prompt_tokens=80, max_action_tokens=8), rl=dataclasses.replace(RL, **settings)
    )
    return RowPacker(config, 0, 16, shards, single=single)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    actions = [sample.action for sample in SAMPLES]
    return ppo.make_batch(
        *(actions, [rng.normal(-3, 0.5, len(action)) for action in actions]),
        [float(rng.random()) if i in COUNTED else None for i in range(len(actions))],
        [i // 4 for i in range(len(actions))],
        action_tokens=8,
    )


def perturbed(params, seed):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [leaf + 0.02 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def gradients_of(model, params, critic, batch, passes):
    """Scores, metrics, and the gradients of one step: plain descent of rate 1 takes off just them."""
    moved = {"policy": perturbed(params, 3), "critic": perturbed(critic, 4)}  # ratios are not 1
    scores = ppo.score(model, params, critic, batch, passes)
    reference = ppo.score(model, perturbed(params, 5), None, batch, passes)
    targets = ppo.make_targets(batch, scores, reference, RL)
    optimizer, before = optax.sgd(1.0), jax.tree.map(np.asarray, moved)
    after, _, metrics = ppo.ppo_step(
        *(moved, optimizer.init(moved), batch, targets, passes, jnp.float32(0.1)),
        model=model,
        optimizer=optimizer,
        config=RL,
    )
    read = {name: float(mean.value) for name, mean in metrics.read().items()}
    return scores, reference, read, jax.tree.map(lambda a, b: a - np.asarray(b), before, after)


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("critic_kind", "remat", "scan"), [("head", "none", False), ("separate", "full", True), ("head", "dots", True)]
)
def test_log_probs_values_loss_and_gradients_are_those_of_separate_rows(critic_kind, remat, scan, batch):
    shape = SHAPE if scan else dataclasses.replace(SHAPE, num_layers=1)
    graph, params = models.create(shape, jax.random.key(0), scan_layers=scan)
    critic = ppo.init_critic(16, perturbed(params, 1) if critic_kind == "separate" else None)
    critic["kernel"] = critic["kernel"] + 0.3
    model = ppo.Model(graph, 0.8, "float32", remat)
    shared, alone = packer().pack(SAMPLES, COUNTED, 16), packer(single=True).pack(SAMPLES, COUNTED, 16)
    tokens = [int((each.segment_ids > 0).sum()) for each in (shared, alone)]
    assert tokens[1] > 2.5 * tokens[0] and shared.count > 1, "prompts are shared, and there are several passes"
    found, expected = (gradients_of(model, params, critic, batch, each) for each in (shared, alone))
    assert_close(found, expected)
    assert np.abs(np.asarray(found[0].values)).max() > 0.01
    # And both are those of plain rows without any of this.
    for index in (7, 11):
        row = jnp.asarray([[*SAMPLES[index].prompt, *SAMPLES[index].action]])
        logits = models.logits(graph, params, models.hidden_states(graph, params, row))[0] / 0.8
        logs = jax.nn.log_softmax(logits)[len(SAMPLES[index].prompt) - 1 : -1]
        wanted = [float(log[token]) for log, token in zip(logs, SAMPLES[index].action, strict=True)]
        np.testing.assert_allclose(np.asarray(found[0].log_probs)[index][: len(wanted)], wanted, atol=1e-5)


@pytest.mark.slow
def test_adapters_have_the_gradients_of_separate_rows(batch):
    graph, base = models.create(SHAPE, jax.random.key(0))
    graph = lora.adapted(graph, models.LoRA(rank=2, alpha=4.0, targets=("query", "down")))
    adapters = perturbed(lora.create(graph, jax.random.key(1)), 2)
    model, optimizer = ppo.Model(graph, 1.0, "float32", "none"), optax.sgd(1.0)
    results = []
    for passes in (packer().pack(SAMPLES, COUNTED, 16), packer(single=True).pack(SAMPLES, COUNTED, 16)):
        params = {"policy": jax.tree.map(jnp.copy, adapters), "critic": ppo.init_critic(16)}
        scores = ppo.score(model, lora.join(base, adapters), params["critic"], batch, passes)
        targets = ppo.make_targets(batch, scores, scores, RL)
        arguments = (params, optimizer.init(params), batch, targets, passes, jnp.float32(0.0))
        results.append(ppo.ppo_step(*arguments, model=model, optimizer=optimizer, config=RL, base=base)[0])
    assert_close(*results)


@pytest.mark.slow
def test_a_count_of_passes_leaves_out_the_empty_ones(batch):
    graph, params = models.create(SHAPE, jax.random.key(0))
    passes = packer().pack(SAMPLES, COUNTED, 16)
    assert 0 < passes.count < len(passes.tokens)
    model = ppo.Model(graph, 1.0, "float32", "none")
    scores = [ppo.score(model, params, None, batch, each) for each in (passes, passes.each)]
    assert_close(*scores)


@pytest.mark.slow
def test_a_mesh_changes_nothing():
    """On eight simulated devices, which a process has to ask for before it starts."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    program = "import test_training_rows; test_training_rows.compare_meshes()"
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=Path(__file__).parent, check=True)


def compare_meshes():
    assert jax.device_count() == 8
    actions = batch.__wrapped__()
    expected = gradients_of(*whole_model(None), actions, packer().pack(SAMPLES, COUNTED, 16))
    for data, fsdp, tensor in ((2, 2, 2), (1, 4, 2)):
        devices = Devices.of(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
        with jax.set_mesh(devices.mesh):
            passes = place(packer(devices.row_shards).pack(SAMPLES, COUNTED, 16), devices)
            everywhere = jax.tree.map(processes.everywhere, actions)
            assert_close(gradients_of(*whole_model(devices.mesh), everywhere, passes), expected)


def whole_model(mesh):
    graph, params = models.create(SHAPE, jax.random.key(0), mesh=mesh)
    return ppo.Model(graph, 0.8, "float32", "full"), params, ppo.init_critic(16)


def test_a_kernel_without_segments_gets_one_action_a_row():
    passes = packer(single=True).pack(SAMPLES, COUNTED, 16)
    rows = passes.segment_ids.reshape(-1, passes.segment_ids.shape[-1])
    assert passes.single and sorted(set(rows.max(axis=1))) == [0, 1] and (rows.max(axis=1) > 0).sum() == len(COUNTED)


def test_every_token_of_an_action_is_in_one_pass_with_the_token_it_follows():
    passes = packer().pack(SAMPLES, COUNTED, 16)
    found = {}
    for r, d in zip(*np.nonzero(flat(passes.entries) < 16 * 8), strict=True):
        index, step = divmod(int(flat(passes.entries)[r, d]), 8)
        before = (*SAMPLES[index].prompt, *SAMPLES[index].action)[len(SAMPLES[index].prompt) - 1 + step]
        at = flat(passes.at)[r, d]
        assert flat(passes.tokens)[r, at] == before
        assert flat(passes.positions)[r, at] == len(SAMPLES[index].prompt) - 1 + step
        assert (index, step) not in found
        found[index, step] = int(flat(passes.targets)[r, d])
    assert found == {(i, t): token for i in COUNTED for t, token in enumerate(SAMPLES[i].action)}


def flat(array):
    return array.reshape(-1, array.shape[-1])


def test_minibatches_keep_the_actions_of_a_state_together():
    groups, counted = np.repeat(np.arange(10), 4), np.arange(40) % 13 != 0
    parts = minibatches(groups, counted, 4, np.random.default_rng(0))
    assert sorted(np.concatenate(parts)) == np.flatnonzero(counted).tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sum(len(set(groups[part])) for part in parts) <= 10 + 3, "a cut splits one group"
    assert len(minibatches(groups, np.arange(40) < 2, 4, np.random.default_rng(0))) == 2


LENGTHS = {
    "quickstart": (256, 64, 16, 2, 180, 0.25, 35, 2048, 1),
    "7b": (14_000, 1_000, 64, 4, 5_000, 0.5, 150, 2048, 1),
    "7b on eight": (14_000, 1_000, 64, 4, 5_000, 0.5, 150, 2048, 8),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_run_on_log_normal_lengths_takes_eight_shapes_with_little_padding(name):
    prompt, action, states, parts, median, sigma, short, micro_tokens, shards = LENGTHS[name]
    limits = PromptConfig(max_prompt_tokens=prompt, max_action_tokens=action)
    rl = RLConfig(states=states, samples=4, micro_tokens=micro_tokens)
    rows, rng = RowPacker(Config(prompt=limits, rl=rl), 0, 4096 if prompt > 10_000 else 192, shards), RNG
    used = total = 0
    shapes = set()
    for _ in range(10):
        sizes = np.clip(rng.lognormal(np.log(median), sigma, states), 2, prompt).astype(int)
        samples = [
            Sample((state, *(0,) * (size - 1)), (1,) * int(np.clip(rng.lognormal(np.log(short), 0.5), 1, action)))
            for state, size in enumerate(sizes)
            for _ in range(4)
        ]
        for part in np.array_split(np.arange(4 * states), parts):
            passes = rows.pack(samples, part, -(-4 * states // parts))
            shapes.add((*passes.tokens.shape, passes.at.shape[-1]))
            used += int((passes.segment_ids > 0).sum())
            total += int(passes.count) * passes.tokens[0].size
    assert len(shapes) <= 8
    assert 1 - used / total < 0.15


def test_a_resumed_run_takes_the_shapes_that_it_knew():
    first, second = packer(micro_tokens=256), packer(micro_tokens=256)
    first.pack(SAMPLES, COUNTED, 16)
    second.shapes.restore(first.shapes.to_list())
    assert second.shapes.known == first.shapes.known and len(first.shapes.known) > 1
    other = packer(shards=4)
    other.shapes.restore(first.shapes.to_list())
    assert all(shape.rows % 4 == 0 for shape in other.shapes.known), "the mesh may change"
