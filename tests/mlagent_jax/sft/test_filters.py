"""Which recorded steps are imitated, by each setting alone."""

import dataclasses

import pytest

from environments.protocol import Outcome, OutcomeKind, Scale, State
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.stages import FilterConfig
from mlagent_jax.sft.examples import split_trajectories
from mlagent_jax.sft.filters import gain, imitated
from mlagent_jax.trajectories.record import Record

SCALE = Scale(m_init=0.5, m_best=0.9, higher_is_better=True)


def record(kind=OutcomeKind.SCORED, after=0.7, action="a", trajectory=0, step=0, task="t", **fields):
    state = State(f"{task}@1", (), f"snapshot {step}", "script", 0.5, fields.pop("ideas", ()))
    scored = after if kind is OutcomeKind.SCORED else None
    outcome = Outcome(kind, "seen", "s", "script", 0.5, scored, fields.pop("scale", SCALE))
    values = {"stage": "collect", "split": "train", "prompt": "p"} | fields
    return Record(task=task, trajectory=trajectory, step=step, state=state, action=action, outcome=outcome, **values)


def chosen(records, **settings):
    return [record.action for record in imitated(records, FilterConfig(**settings))]


def test_by_default_valid_steps_of_training_tasks_that_are_no_slips():
    kinds = [record(kind, action=kind.value) for kind in OutcomeKind]
    others = [record(action="slip", target=False), record(action="held", split="held_out")]
    assert chosen([*kinds, *others]) == ["no_edit", "scored"]


def test_by_outcome():
    assert chosen([record(kind, action=kind.value) for kind in OutcomeKind], outcomes=("script_error",)) == [
        "script_error"
    ]


def test_by_gain_which_is_a_share_of_the_gap_and_signed_for_the_metric():
    down = Scale(m_init=0.5, m_best=0.3, higher_is_better=False)
    assert gain(record(after=0.7).outcome) == pytest.approx(0.5)
    assert gain(record(after=0.4, scale=down).outcome) == pytest.approx(0.5)
    records = [
        record(after=0.7, action="up"),
        record(after=0.4, action="down"),
        record(OutcomeKind.NO_EDIT, action="look"),
    ]
    assert chosen(records, min_gain=0.1) == ["up", "look"]


def test_by_length_of_prompt_and_action():
    assert chosen([record(action="x" * 9), record(action="x" * 10)], max_characters=10) == ["x" * 9]


def test_without_duplicates_the_first_of_an_action_in_a_state_counts_whatever_its_ideas():
    records = [record(), record(ideas=("an idea",)), record(action="b"), record(step=1)]
    assert chosen(records) == ["a", "a", "b", "a"]
    assert chosen(records, duplicates=False) == ["a", "b", "a"]


def test_whole_trajectories_are_held_out_the_same_share_of_every_task():
    records = [record(trajectory=i, step=s, task=task) for task in ("t", "u") for i in range(10) for s in range(3)]
    trained, held = split_trajectories(records, 0.2, seed=0)
    assert len(held) == 2 * 2 * 3 and len(trained) + len(held) == len(records)
    keys = [{(r.task, r.trajectory) for r in part} for part in (trained, held)]
    assert not keys[0] & keys[1]
    assert split_trajectories(records, 0.2, seed=0)[1] == held != split_trajectories(records, 0.2, seed=1)[1]
    assert split_trajectories(records, 0.0, seed=0) == (records, [])


def test_one_trajectory_of_a_task_is_not_held_out():
    with pytest.raises(ConfigError, match="no task has enough trajectories"):
        split_trajectories([dataclasses.replace(record())], 0.5, seed=0)
