"""What ends the loop of rl, and what is kept of it then; what it tells of a batch."""

import dataclasses
import json
import types

import numpy as np
import pytest

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from mlagent_jax.agents.actor import SampledAction
from mlagent_jax.rl.checks import check_divergence, check_ratio, check_sampler, warn_of_mismatch
from mlagent_jax.rl.in_flight import TrainingRow
from mlagent_jax.rl.replay import read_batch, write_batch
from mlagent_jax.rl.scalars import operator_scalars, task_scalars
from mlagent_jax.runtime.errors import DivergedError
from mlagent_jax.settings.policy import PolicyConfig
from mlagent_jax.settings.schema import Config
from mlagent_jax.settings.stages import RLConfig

FINE = {"kl": 0.1, "policy_loss": -0.2, "value_loss": 0.3, "grad_norm": 1.0}


def a_run(folder, **policy):
    config = Config(policy=PolicyConfig(**policy), rl=RLConfig(max_kl=1.0))
    return types.SimpleNamespace(workdir=folder, is_first=True, config=config)


def taken(task, reward, version=7):
    action = SampledAction(State(f"{task}@1", (), "s", "x = 1", 0.5), 0, (1, 2), (3,), (-1.0,), "a", False)
    kind = OutcomeKind.INFRASTRUCTURE_ERROR if reward is None else OutcomeKind.SCORED
    outcome = Outcome(kind, "", "s", "", 0.5, None, Scale(0.5, 1.0, True), reward)
    return TrainingRow(action, Job("run", version, action.state, 0, "a"), outcome, reward, 0, version)


@pytest.mark.parametrize("values", [{"kl": 1.01}, {"kl": np.nan}, {"policy_loss": np.inf}, {"grad_norm": np.nan}])
def test_an_update_that_went_wrong_ends_the_run_and_its_batch_is_kept(values, tmp_path):
    with pytest.raises(DivergedError, match=f"iteration 7: .*{next(iter(values))}"):
        check_divergence(a_run(tmp_path), 7, FINE | values, [taken("a", 0.5), taken("b", 0.25)])
    kept = [json.loads(line) for line in (tmp_path / "diverged.jsonl").read_text().splitlines()]
    assert [(row["outcome"]["reward"], row["tokens"], row["version"]) for row in kept] == [
        (0.5, [3], 7),
        (0.25, [3], 7),
    ]


def test_an_update_within_its_bounds_goes_on(tmp_path):
    check_divergence(a_run(tmp_path), 7, FINE, [taken("a", 0.5)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dtype", "passes", "fails"), [("float32", 5e-5, 2e-4), ("bfloat16", 0.04, 0.06)])
def test_sampler_and_trainer_agree_on_actions_of_the_same_version_and_ratios_begin_at_1(dtype, passes, fails, tmp_path):
    run = a_run(tmp_path, compute_dtype=dtype)
    batch = types.SimpleNamespace(
        rewards=np.zeros(2), mask=np.ones((2, 1), bool), behaviour_log_probs=np.full((2, 1), -1.0)
    )
    rows = [taken("a", 0.5), taken("a", 0.5, version=6)]
    check_sampler(run, 7, batch, np.asarray([[-1.0 + passes], [-3.0]]), rows)  # the second is of an older version
    check_ratio(run, 7, passes)
    for gap in (fails, np.nan):
        with pytest.raises(DivergedError, match="sampler and trainer differ"):
            check_sampler(run, 7, batch, np.asarray([[-1.0 + gap], [-1.0]]), rows)
        with pytest.raises(DivergedError, match="log-ratios"):
            check_ratio(run, 7, gap)


def test_rewards_are_told_by_task_without_what_could_not_be_executed():
    rows = [taken("a", 0.5), taken("a", 1.0), taken("a", None), taken("b", 0.0), taken("c", None)]
    assert task_scalars(rows) == {"task_a": 0.75, "task_b": 0.0}


def test_rewards_are_told_by_kind_of_step_where_steps_have_kinds():
    rows = [taken("a", reward) for reward in (0.5, 1.0, None, 0.0)]
    assert operator_scalars(rows) == {}
    kinds = ("debug", "debug", "debug", "draft")
    rows = [
        dataclasses.replace(
            row, action=dataclasses.replace(row.action, state=dataclasses.replace(row.action.state, operator=kind))
        )
        for row, kind in zip(rows, kinds, strict=True)
    ]
    invalid = dataclasses.replace(rows[0].outcome, kind=OutcomeKind.INVALID_ACTION)
    rows[0] = dataclasses.replace(rows[0], outcome=invalid)
    assert operator_scalars(rows) == {
        "operator_debug": 0.75,
        "operator_debug_valid": 0.5,
        "operator_draft": 0.0,
        "operator_draft_valid": 1.0,
    }


def test_a_sampler_far_from_the_trainer_is_warned_of_with_the_remedy(caplog):
    warn_of_mismatch(3, {"effective_samples": 0.6, "behaviour_gap": 0.1})
    assert not caplog.records
    warn_of_mismatch(3, {"effective_samples": 0.2, "behaviour_gap": 0.9})
    assert "sample size of 20%" in caplog.text and "lower config.rl.max_staleness" in caplog.text


def test_a_batch_that_is_kept_can_be_replayed(tmp_path):
    rows = [taken("a", 0.5), taken("b", None, version=3)]
    write_batch(tmp_path / "batch.jsonl", rows)
    assert read_batch(tmp_path / "batch.jsonl") == rows
