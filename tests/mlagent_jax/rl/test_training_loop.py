"""The loop of rl, without programs and workers: what a signal leaves, and what of a batch counts."""

import contextlib
import importlib
import signal
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from mlagent_jax.agents.actor import SampledAction
from mlagent_jax.rl.batches import Batches
from mlagent_jax.rl.in_flight import Group, TrainingRow
from mlagent_jax.rl.scalars import speaking_groups
from mlagent_jax.runtime.interruption import Interruption, Stopped
from mlagent_jax.settings.schema import Config
from mlagent_jax.settings.stages import RLConfig

stage = importlib.import_module("mlagent_jax.rl.stage")  # the package has a function of this name
STATE = State("task@1", (), "s", "x = 1", 0.5)


class SlowCheckpoints:
    """Checkpoints that are still being written when they are looked for."""

    def __init__(self):
        self.saved = []

    def latest(self):
        return None

    def save(self, step, arrays, extra, metric=None):
        assert step not in self.saved, "a step is saved once"
        self.saved.append(step)


class Loop:
    """A trainer of which every part but the loop is made up; `when` sends SIGTERM at the named points."""

    def __init__(self, monkeypatch, folder, *when, every=100, validates=False):
        self.when, self.saves, self.metrics = when, SlowCheckpoints(), []
        monkeypatch.setattr(stage, "checkpointer", lambda *_: contextlib.nullcontext(self.saves))
        trainer = self.trainer = stage._Trainer.__new__(stage._Trainer)
        self.interruption = Interruption()
        trainer.run = MagicMock(interruption=self.interruption, workdir=folder)
        trainer.run.is_stopping = lambda: self.interruption.requested
        trainer.run.stop_if_requested = self.interruption.check
        trainer.run.metrics.write = lambda _, step, values: self.metrics.append(step) or self.at("record", step)
        trainer.config = RLConfig(iterations=4, checkpoint_every=every, replay="made up")
        trainer.trajectories = folder / "rl.jsonl"
        trainer.batches, trainer.learner, trainer.validation = MagicMock(), MagicMock(), None
        trainer.learner.to_dict.return_value = trainer.batches.to_dict.return_value = {}
        trainer.batches.take = lambda version, *_: self.at("take", version) or ([], 0.0)
        trainer.iteration = trainer._saved = trainer._recorded = 0
        if validates:
            trainer.validation = MagicMock(has_converged=False, history=[0.5])
            trainer.validation.measure = lambda _, iteration: self.at("validate", iteration) or {}
        trainer.whole = lambda params: params
        monkeypatch.setattr(trainer, "_train_on", self.train_on)

    def at(self, *point):
        if point in self.when:
            signal.raise_signal(signal.SIGTERM)

    def train_on(self, *_):
        self.at("update", self.trainer.iteration)
        self.trainer.iteration += 1
        return dict.fromkeys(("reward", "kl", "entropy", "valid"), 0.0)

    def stop(self):
        """Train until the signal; return (steps of checkpoints, steps of metrics)."""
        with self.interruption, pytest.raises(Stopped):
            self.trainer.train()
        return self.saves.saved, self.metrics


def test_a_checkpoint_that_is_being_written_is_not_saved_again(monkeypatch, tmp_path):
    assert Loop(monkeypatch, tmp_path, ("take", 2), every=1).stop() == ([1, 2], [1, 2])
    assert Loop(monkeypatch, tmp_path, ("take", 2)).stop() == ([2], [1, 2])


@pytest.mark.parametrize("validates", [False, True])
def test_a_signal_during_the_update_saves_the_iteration_that_it_completes(monkeypatch, tmp_path, validates):
    loop = Loop(monkeypatch, tmp_path, ("update", 2), validates=validates)
    if validates:
        loop.trainer.validation.is_due = lambda iteration: iteration == 4
    assert loop.stop() == ([3], [1, 2, 3])


def test_a_signal_during_the_validation_has_the_iteration_repeated(monkeypatch, tmp_path):
    saved, metrics = Loop(monkeypatch, tmp_path, ("validate", 3), validates=True).stop()
    assert (saved, metrics) == ([1, 2], [1, 2])


def row(group, reward, sample=0):
    action = SampledAction(STATE, sample, (1, 2), (3, 4), (-1.0, -2.0), f"{group} {sample}", False)
    kind = OutcomeKind.INFRASTRUCTURE_ERROR if reward is None else OutcomeKind.SCORED
    outcome = Outcome(kind, "", "s", "", 0.5, None if reward is None else 0.6, Scale(0.5, 1.0, True), reward)
    return TrainingRow(action, Job("run", 0, STATE, sample, action.text), outcome, reward, group, 0)


def test_operations_are_those_of_the_rows_that_count():
    trainer = stage._Trainer.__new__(stage._Trainer)
    trainer.run, trainer.config = MagicMock(), RLConfig(replay="made up")
    trainer.iteration, trainer._resharding = 0, (0, 0.0)
    batches = trainer.batches = MagicMock(states=1, resharding=(0, 0.0), replaced=[])
    batches.join.return_value = 0.0
    trainer.learner = MagicMock()
    trainer.learner.update.return_value = {}
    mask = np.zeros((4, 2), bool)  # the last row is padding
    mask[0] = True
    trainer.learner.batch.return_value = SimpleNamespace(mask=mask)
    trainer.speed = MagicMock()
    trainer.speed.rl.return_value = {}
    taken = [row(0, 0.5), row(0, None, 1), row(1, None)]
    trainer._train_on(taken, 0.0, 1.0)
    assert trainer.speed.rl.call_args.args[0] == [(2, [2])], "of the first row alone"


def test_a_group_speaks_if_two_of_its_rows_count_and_differ():
    rows = [row(0, 0.5), row(0, 0.25), row(1, 0.5), row(1, 0.5), row(2, 0.5), row(2, None), row(3, None), row(3, None)]
    assert speaking_groups(rows) == {0}


@pytest.mark.parametrize("fresh", [(None, None), (0.5, None), (0.5, 0.5)])
def test_a_silent_group_is_not_replaced_by_one_without_a_signal(monkeypatch, fresh):
    batches = Batches.__new__(Batches)
    config = Config(rl=RLConfig(states=1, samples=2, silent_groups="resample", resample_executions=2))
    sampled = [row(100, reward, sample) for sample, reward in enumerate(fresh)]
    client = SimpleNamespace(gather=lambda jobs, show: [each.outcome for each in sampled])
    batches._run, batches._config = SimpleNamespace(config=config, job_client=client), config.rl
    batches._pool = SimpleNamespace(sample=lambda rng, count: [STATE])
    batches.actor = SimpleNamespace(act=lambda *_: [each.action for each in sampled])
    monkeypatch.setattr(
        batches, "_group", lambda index, version, actions: Group(0, 100, actions, tuple(each.job for each in sampled))
    )
    silent = [row(0, 0.5), row(0, 0.5, 1)]
    taken, _ = batches._resample(0, None, silent, lambda _: None)
    assert taken == silent
    assert [each.group for each in batches.replaced] == [100, 100], "the pool learns from them all the same"
