"""Runs of rl whose executions sleep. Sampling beside the update changes nothing but the time; a run that is cut short
goes on as if it had not been, and one that diverges ends with its batch kept; whole episodes, and states that the
policy reached, go the same way."""

import contextlib
import dataclasses
import importlib
import math

import jax
import numpy as np
import pytest

from environments.protocol import Job, Requirements
from environments.queue import open_queue
from mlagent_jax.algorithms.kl import KL_CONTROLLERS
from mlagent_jax.rl.batches import Batches
from mlagent_jax.rl.validation import Validation
from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.errors import ConfigError, DivergedError
from mlagent_jax.sampling import load
from mlagent_jax.settings.schema import default_config, freeze
from mlagent_jax.studies import sleeping
from mlagent_jax.studies.sleeping import SleepingRun, made_up_states, sleeping_run

pytestmark = pytest.mark.slow
stage = importlib.import_module("mlagent_jax.rl.stage")  # the package has a function of this name


def make_config(speaker, staleness=1, validation=(), **fields):
    """With all that a resume has to bring back: a KL coefficient that moves, a pool that learns."""
    config = default_config()
    config.stages = ("rl",)
    config.policy.checkpoint = str(speaker)
    config.prompt.max_prompt_tokens = 184
    config.prompt.max_action_tokens = 8
    config.sampling.slots = 4
    config.rl.iterations, config.rl.states, config.rl.samples = 3, 2, 2
    config.rl.epochs, config.rl.minibatches, config.rl.learning_rate = 1, 2, 1e-3
    config.rl.max_staleness, config.rl.kl_controller = staleness, "adaptive:target=1e-3"
    config.pool.refresh_fraction, config.pool.sampling = 0.5, "learnability"
    for name, value in fields.items():
        config.rl[name] = value
    for name, value in dict(validation).items():
        config.validation[name] = value
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


@pytest.fixture(scope="module")
def synchronous(speaker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "synchronous"
    found = go(make_config(speaker, 0, save_batches=True), folder)
    return (*found, jsonl.read(folder / "trajectories" / "rl.jsonl"), folder)


def assert_same(one, other):
    assert one[1] == other[1]
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    for ours, theirs in zip(one[2], other[2], strict=True):
        for name in ("reward", "kl", "kl_coefficient", "policy_loss", "grad_norm", "staleness", "pool"):
            assert ours[name] == theirs[name], name


def test_the_run_is_the_same_bit_by_bit_and_cut_short_goes_on_as_if_it_had_not_been(
    speaker, plain, tmp_path, monkeypatch
):
    config, train_on = make_config(speaker), stage._Trainer._train_on
    busy = []

    def cut_short(self, *taken):
        busy.append(self.batches._background._call is not None)
        if self.iteration == 2 and len(busy) == 3:
            raise RuntimeError("power cut")
        return train_on(self, *taken)

    monkeypatch.setattr(stage._Trainer, "_train_on", cut_short)
    with pytest.raises(RuntimeError, match="power cut"):
        go(config, tmp_path)
    with contextlib.closing(open_queue(f"sqlite:///{tmp_path}/queue.db")) as queue:
        (name,) = queue.status()["runs"]
        nobodys = Requirements(cores=1000)
        left = [Job(name, version, made_up_states(1, 2)[0], 0, "", requirements=nobodys) for version in (0, 1)]
        queue.enqueue(left)
        found = go(config, tmp_path)
        left_by_version = queue.status()["runs"][name]["outstanding_by_version"]
        assert left_by_version == {"1": 1}, "what is queued of a policy beyond the bound is cancelled"
        assert "older than version 1" in queue.outcomes([left[0].id])[left[0].id].reason
    assert_same(found, plain)
    assert busy == [True, True, False, False], "the next batch is sampled beside the update, while there is one to come"
    assert [values["staleness"] for values in found[2]] == [0.0, 1.0, 1.0]
    assert all(values["seconds_sample_ahead"] > 0 for values in found[2][:2])
    assert all(values["seconds_sample_ahead"] == 0 for values in plain[2])


def test_without_staleness_there_is_nothing_ahead(synchronous):
    _, _, metrics, *_ = synchronous
    assert [values["staleness"] for values in metrics] == [0.0] * 3
    assert all(values["seconds_sample_ahead"] == 0 for values in metrics)
    assert all(values["seconds_reshard"] > 0 and values["reshard_bytes"] > 0 for values in metrics)


def test_an_error_beside_the_update_ends_the_run(speaker, tmp_path, monkeypatch):
    sample = Batches._sample

    def fail(self, weights, version, index, *rest):
        if index == 1:
            raise RuntimeError("no room on the device")
        sample(self, weights, version, index, *rest)

    monkeypatch.setattr(Batches, "_sample", fail)
    with pytest.raises(RuntimeError, match="no room"):
        go(make_config(speaker), tmp_path)


def test_every_iteration_tells_what_a_person_watches(plain):
    watched = {"reward", "reward_scored", "share_scored", "task_sleep", "kl", "entropy", "clip_fraction"}
    watched |= {"explained_variance", "grad_norm", "staleness", "seconds_sample", "seconds_execute", "seconds_wait"}
    watched |= {"seconds_update", "tokens_per_second", "executions_per_second"}
    for values in plain[2]:
        assert watched <= values.keys()
        assert all(math.isfinite(values[name]) for name in watched)
        assert values["seconds_execute"] == pytest.approx(4 * 0.01)


def test_an_update_that_goes_wrong_ends_the_run_and_only_its_batch_is_kept(speaker, tmp_path):
    with pytest.raises(DivergedError, match="iteration 0: kl"):
        go(make_config(speaker, 0, max_kl=1e-12), tmp_path)
    kept = jsonl.read(tmp_path / "diverged.jsonl")
    assert [row["outcome"]["reward"] for row in kept] == [row["outcome"]["metric_after"] for row in kept]
    assert len(kept) == 4 and all(row["tokens"] and row["log_probs"] for row in kept)
    with contextlib.closing(open_queue(f"sqlite:///{tmp_path}/queue.db")) as queue:
        (name,) = queue.status()["runs"]
        assert queue.consumed(name) == {}, "it is not trained on in the eyes of the queue"
    assert not list((tmp_path / "checkpoints" / "rl").glob("[0-9]*"))


def test_whole_episodes_are_trained_on_step_by_step(speaker, tmp_path):
    # As many rows as the other runs' batches: programs of these shapes are compiled.
    config = make_config(speaker, 0, rollout="episode", episode_steps=2, iterations=2, states=1)
    before = load(speaker)[0].params
    params, _, metrics = go(config, tmp_path)
    assert [values["staleness"] for values in metrics] == [0.0, 0.0]
    records = jsonl.read(tmp_path / "trajectories" / "rl.jsonl")
    for step in (1, 2):
        depths = [len(record["state"]["history"]) for record in records if record["step"] == step]
        assert depths == 2 * [0, 1], "two from a state, each from its start to its end"
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True))


def test_states_that_the_policy_reached_are_drawn_at_the_set_share(synchronous):
    _, _, metrics, records, _ = synchronous
    own = [[bool(record["state"]["history"]) for record in records if record["step"] == step] for step in (1, 2, 3)]
    assert [sum(each) for each in own] == [0, 2, 2], "one of two states, and two actions in it"
    assert [values["pool"] for values in metrics] == [5 + 4, 5 + 8, 5 + 12]


def test_the_kl_coefficient_follows_the_kl(synchronous):
    _, _, metrics, *_ = synchronous
    controller, coefficient = KL_CONTROLLERS.choose("adaptive:target=1e-3"), default_config().rl.kl_coefficient
    for values in metrics:
        assert values["kl_coefficient"] == coefficient
        coefficient = controller(coefficient, values["kl"])


def test_a_run_is_replayed_from_its_batches_bit_by_bit_and_executes_nothing(speaker, synchronous, tmp_path):
    params, _, metrics, _, folder = synchronous
    config = make_config(speaker, 0, replay=str(folder / "batches"))
    replayed, _, again = go(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, replayed, params)
    for ours, theirs in zip(again, metrics, strict=True):
        for name in ("kl", "policy_loss", "reward"):
            assert ours[name] == theirs[name], name
    with contextlib.closing(open_queue(f"sqlite:///{tmp_path}/queue.db")) as queue:
        assert queue.status()["runs"] == {}
    one = go(make_config(speaker, 0, iterations=1, replay=str(folder / "batches" / "00001.jsonl")), tmp_path / "one")
    assert one[2][0]["policy_loss"] == metrics[0]["policy_loss"]


@pytest.mark.parametrize(("name", "message"), [("none.jsonl", "no such file"), ("torn.jsonl", "no batch of rl")])
def test_a_batch_that_cannot_be_read_is_named(speaker, tmp_path, name, message):
    (tmp_path / "torn.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ConfigError, match=rf"config\.rl\.replay is .*{name}.*{message}"):
        go(make_config(speaker, 0, replay=str(tmp_path / name)), tmp_path / "run")


@pytest.fixture
def held_in(monkeypatch):
    """The states are held in, too: they can be validated on."""
    records = SleepingRun.expert_records

    def both(run):
        found = records(run)
        return [*found, *(dataclasses.replace(record, split="held_in") for record in found)]

    monkeypatch.setattr(SleepingRun, "expert_records", both)


def test_the_critic_learns_first_and_the_best_policy_is_kept(speaker, held_in, tmp_path):
    config = make_config(
        speaker,
        0,
        {"every": 1, "states": 3, "keep_best": True},
        critic_warmup=1,
        critic_pretraining=1,
        kl_controller="fixed",
    )
    start = load(speaker)[0].params
    params, _, metrics = go(config, tmp_path)
    (critic,) = [record for record in metrics if record["stage"] == "critic"]
    assert {"explained_variance_before", "explained_variance_after"} <= critic.keys()
    rl = [record for record in metrics if record["stage"] == "rl"]
    # Two programs of different shapes score the same policy: they differ by rounding.
    assert abs(rl[0]["kl"]) < 1e-9 < rl[1]["kl"], "the warm-up leaves the policy as it is"
    validated = [record["validation_reward"] for record in rl]
    moved = any(np.any(a != b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(start), strict=True))
    assert moved == (validated[0] < max(validated)), "the policy is that of the best validation"
    assert all(0 <= record["validation_valid"] <= 1 for record in rl)


def test_training_stops_when_validations_get_no_better(speaker, held_in, tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "measure", lambda self, *_: self.history.append(1.0 - len(self.history)) or {})
    _, _, metrics = go(make_config(speaker, 0, {"every": 1, "patience": 1}), tmp_path)
    assert [record["step"] for record in metrics] == [1, 2]


def test_a_tracked_baseline_and_a_reference_that_moves_survive_a_restart(speaker, held_in, tmp_path, monkeypatch):
    settings = {"estimator": "single_stream", "reference_every": 1, "sample_ahead": False}
    config = make_config(speaker, 0, {"every": 2, "states": 2}, **settings)
    whole = go(config, tmp_path / "whole")
    train_on = stage._Trainer._train_on

    def cut_short(self, *taken):
        if self.iteration == 2:
            raise RuntimeError("power cut")
        return train_on(self, *taken)

    monkeypatch.setattr(stage._Trainer, "_train_on", cut_short)
    with pytest.raises(RuntimeError, match="power cut"):
        go(config, tmp_path / "cut")
    monkeypatch.setattr(stage._Trainer, "_train_on", train_on)
    assert_same(go(config, tmp_path / "cut"), whole)
    assert "explained_variance" not in whole[2][0], "there is no critic"


def test_groups_that_say_nothing_are_sampled_again_within_a_budget_of_executions(speaker, tmp_path, monkeypatch):
    made = sleeping.outcome_of

    def tied(job, seconds):
        outcome = made(job, seconds)
        return dataclasses.replace(outcome, reward=0.5) if job.sample < 4 else outcome

    monkeypatch.setattr(sleeping, "outcome_of", tied)
    config = make_config(speaker, 0, iterations=1, silent_groups="resample", resample_executions=3)
    _, _, metrics = go(config, tmp_path)
    samples = [record["trajectory"] for record in jsonl.read(tmp_path / "trajectories" / "rl.jsonl")]
    assert len(samples) == 4 and sum(sample >= 4 for sample in samples) == 2, "one group of two, for 2 of 3 executions"
    assert metrics[0]["silent_groups"] == pytest.approx(2 / 3)
    with contextlib.closing(open_queue(f"sqlite:///{tmp_path}/queue.db")) as queue:
        (name,) = queue.status()["runs"]
        assert len(queue.consumed(name)) == 4


def test_a_batch_in_which_every_group_says_nothing_changes_nothing(speaker, tmp_path, monkeypatch):
    made = sleeping.outcome_of
    tied = lambda job, seconds: dataclasses.replace(made(job, seconds), reward=0.5)  # noqa: E731
    monkeypatch.setattr(sleeping, "outcome_of", tied)
    params, _, metrics = go(make_config(speaker, 0, iterations=1, silent_groups="drop"), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, load(speaker)[0].params)
    assert metrics[0]["silent_groups"] == 1.0 and metrics[0]["grad_norm"] == 0.0
