"""From what came back to the rows of a batch."""

import contextlib
import gc
import types

import jax
import numpy as np
import pytest

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from mlagent_jax import models
from mlagent_jax.agents.actor import SampledAction
from mlagent_jax.checkpoints.policies import Policy
from mlagent_jax.rl.in_flight import TrainingRow
from mlagent_jax.rl.learner import Learner, batch_of
from mlagent_jax.rl.rows import RowPacker
from mlagent_jax.rl.scalars import group_scalars, silent_groups
from mlagent_jax.runs.devices import Devices
from mlagent_jax.runs.policies import Training
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.policy import PolicyConfig
from mlagent_jax.settings.schema import Config
from mlagent_jax.settings.stages import RLConfig

STATE = State("task@1", (), "s", "x = 1", 0.5)


def taken(group, reward, seconds):
    action = SampledAction(STATE, 0, (1, 2), (3, 4), (-1.0, -2.0), "a", False)
    kind = OutcomeKind.INFRASTRUCTURE_ERROR if reward is None else OutcomeKind.SCORED
    outcome = Outcome(kind, "", "s", "", 0.5, None, Scale(0.5, 1.0, True), reward, seconds=seconds, cpu_seconds=99.0)
    return TrainingRow(action, Job("run", 0, STATE, 0, "a"), outcome, reward, group, 0)


ROWS = [taken(0, 0.5, 1.0), taken(0, 0.25, 3.0), taken(1, None, 500.0)]


def test_a_row_counts_by_the_seconds_of_its_execution_and_what_is_ours_not_at_all():
    rl = RLConfig(states=3, samples=1, duration_weighting=True)
    assert batch_of(Config(rl=rl), ROWS).weights.tolist() == [0.5, 1.5, 0.0]
    assert batch_of(Config(rl=RLConfig(states=3, samples=1)), ROWS).weights.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_of_episodes_that_ended_early_has_the_shape_of_whole_ones(weighted):
    rl = RLConfig(states=2, samples=1, rollout="episode", episode_steps=3, duration_weighting=weighted)
    batch = batch_of(Config(rl=rl), ROWS)
    assert batch.mask.any(axis=1).tolist() == [True, True, False, False, False, False]
    assert batch.groups.tolist() == [0, 0, 1, -1, -1, -1]


def test_groups_that_say_nothing_are_told_and_left_out_where_that_is_set():
    rows = [taken(0, 0.5, 1.0), taken(0, 0.5, 1.0), taken(1, 0.5, 1.0), taken(1, 0.25, 1.0), taken(2, 0.5, 1.0)]
    rows += [taken(3, 0.5, 1.0), taken(3, None, 1.0)]
    assert silent_groups(rows) == {0}, "one action, or one that counts, is compared with nothing"
    assert group_scalars(rows) == {"silent_groups": 0.25}
    for setting, counted in (("keep", [True] * 6 + [False]), ("drop", [False] * 2 + [True] * 4 + [False])):
        rl = RLConfig(states=7, samples=1, silent_groups=setting)
        assert batch_of(Config(rl=rl), rows).mask.any(axis=1).tolist() == counted


def test_a_batch_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"has 3 rows, and config\.rl\.states \* samples is 2"):
        batch_of(Config(rl=RLConfig(states=2, samples=1)), ROWS)


def test_a_batch_without_rows_that_count_refreshes_the_reference_and_tells_the_coefficient():
    learner = Learner.__new__(Learner)
    learner._config, learner._kl_coefficient = RLConfig(reference_every=2), 0.25
    learner.params, learner._reference = {"policy": {"w": np.ones(2)}}, {"w": np.zeros(2)}
    nothing = types.SimpleNamespace(mask=np.zeros((2, 2), bool))
    values = learner.update(nothing, [], 1)
    assert values["kl_coefficient"] == 0.25 and learner._reference["w"].tolist() == [0.0, 0.0]
    learner.update(nothing, [], 2)
    assert learner._reference["w"].tolist() == [1.0, 1.0]


def test_a_checkpoint_without_shapes_is_restored():
    learner = Learner.__new__(Learner)
    one = jax.numpy.ones(1)
    learner.params, learner._state = {"policy": one, "critic": one}, one
    learner._follows, learner.tracker = False, None
    learner._packer = RowPacker(Config(), 0, 64)
    older = {"policy": one, "critic": one, "optimizer": one}, {"kl": {"coefficient": 0.5}}
    learner.restore(types.SimpleNamespace(restore=lambda step, wanted: older), 3)
    assert learner._kl_coefficient == 0.5 and len(learner._packer.shapes.known) == 1


@pytest.mark.slow
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_a_learner_holds_its_arrays_once_and_the_reference_as_it_computes(compute_dtype):
    gc.collect()
    before = live_bytes()
    shape = models.ModelConfig(64, 64, 4, 2, 1, 32, 128, tie_word_embeddings=True)
    config = Config(policy=PolicyConfig(compute_dtype=compute_dtype), rl=RLConfig())
    run = types.SimpleNamespace(config=config, devices=Devices.of(config.mesh))
    with jax.set_mesh(run.devices.mesh):

        def make():
            graph, params = models.create(shape, jax.random.key(0), mesh=run.devices.mesh)
            policy = Policy(shape, graph, params, types.SimpleNamespace(pad_id=0))
            return Learner(run, policy, Training(graph, params), contextlib.nullcontext())

        learner = make()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(learner.params["policy"]))
        reference = size / (1 if compute_dtype == "float32" else 2)
        gc.collect()
        assert live_bytes() - before == pytest.approx(3 * size + reference, rel=0.02), "trained, two moments, reference"
        arrays, shapes, held = jax.tree.map(np.array, learner.arrays()), learner.to_dict(), []  # copies

        def restore(step, wanted):
            gc.collect()
            held.append(live_bytes() - before)
            return jax.tree.map(lambda leaf, array: jax.device_put(array, leaf.sharding), wanted, arrays), shapes

        learner.restore(types.SimpleNamespace(restore=restore), 1)
        assert held == [pytest.approx(reference, rel=0.02)]


def live_bytes():
    return sum(array.nbytes for array in jax.live_arrays())
