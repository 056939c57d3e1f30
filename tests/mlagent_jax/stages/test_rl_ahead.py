"""Sampling beside the update changes nothing but the time; a run that is cut short goes on as if it had not been."""

import contextlib
import importlib

import jax
import numpy as np
import pytest

from environments.protocol import Job, Requirements
from environments.queue import open_queue
from mlagent_jax.config import default_config, freeze
from mlagent_jax.data import jsonl
from mlagent_jax.sampling import load
from mlagent_jax.studies.sleeping import made_up_states, sleeping_run

pytestmark = pytest.mark.slow
stage = importlib.import_module("mlagent_jax.stages.rl")  # the package has a function of this name


def make_config(speaker, staleness=1, **fields):
    config = default_config()
    config.stages = ("rl",)
    config.policy.checkpoint = str(speaker)
    config.prompt.max_prompt_tokens = 128
    config.prompt.max_action_tokens = 8
    config.sampling.slots = 4
    config.rl.iterations, config.rl.states, config.rl.samples = 3, 2, 2
    config.rl.epochs, config.rl.minibatches, config.rl.learning_rate = 1, 2, 1e-3
    config.rl.max_staleness = staleness
    for name, value in fields.items():
        config.rl[name] = value
    return freeze(config)


def go(config, folder):
    with sleeping_run(config, folder, made_up_states(5, 2), workers=2, seconds=0.01) as run:
        stage.rl(run)
    return outcome(folder)


def outcome(folder):
    """What a run leaves: its policy, what it did without its times, its metrics."""
    steps = [
        [record[name] for name in ("step", "prompt", "action")] + [record["outcome"]["reward"]]
        for record in jsonl.read(folder / "trajectories" / "rl.jsonl")
    ]
    return load(folder)[0].params, steps, jsonl.read(folder / "metrics.jsonl")


@pytest.fixture(scope="module")
def plain(speaker, tmp_path_factory):
    return go(make_config(speaker, sample_ahead=False), tmp_path_factory.mktemp("runs") / "plain")


def assert_same(one, other):
    assert one[1] == other[1]
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    for ours, theirs in zip(one[2], other[2], strict=True):
        for name in ("reward", "kl", "policy_loss", "grad_norm", "staleness"):
            assert ours[name] == theirs[name], name


def test_the_run_is_the_same_bit_by_bit_and_cut_short_goes_on_as_if_it_had_not_been(
    speaker, plain, tmp_path, monkeypatch
):
    config, update = make_config(speaker), stage._Trainer._update
    busy = []

    def cut_short(self, batch, taken):
        busy.append(self.beside._call is not None)
        if self.iteration == 2 and len(busy) == 3:
            raise RuntimeError("power cut")
        return update(self, batch, taken)

    monkeypatch.setattr(stage._Trainer, "_update", cut_short)
    with pytest.raises(RuntimeError, match="power cut"):
        go(config, tmp_path)
    with contextlib.closing(open_queue(f"sqlite:///{tmp_path}/queue.db")) as queue:
        (name,) = queue.status()["runs"]
        nobodys = Requirements(cores=1000)
        left = [Job(name, version, made_up_states(1, 2)[0], 0, "", requirements=nobodys) for version in (0, 1)]
        queue.enqueue(left)
        found = go(config, tmp_path)
        assert queue.outstanding(name) == {1: 1}, "what is queued of a policy beyond the bound is cancelled"
        assert "older than version 1" in queue.outcomes([left[0].id])[left[0].id].reason
    assert_same(found, plain)
    assert busy == [True, True, False, False], "the next batch is sampled beside the update, while there is one to come"
    assert [values["staleness"] for values in found[2]] == [0.0, 1.0, 1.0]
    assert all(values["seconds_sample_ahead"] > 0 for values in found[2][:2])
    assert all(values["seconds_sample_ahead"] == 0 for values in plain[2])


def test_without_staleness_there_is_nothing_ahead(speaker, tmp_path):
    _, _, metrics = go(make_config(speaker, 0), tmp_path)
    assert [values["staleness"] for values in metrics] == [0.0] * 3
    assert all(values["seconds_sample_ahead"] == 0 for values in metrics)


def test_an_error_beside_the_update_ends_the_run(speaker, tmp_path, monkeypatch):
    sample = stage._Trainer._sample_batch

    def fail(self, weights, version, index, *rest):
        if index == 1:
            raise RuntimeError("no room on the device")
        sample(self, weights, version, index, *rest)

    monkeypatch.setattr(stage._Trainer, "_sample_batch", fail)
    with pytest.raises(RuntimeError, match="no room"):
        go(make_config(speaker), tmp_path)
