"""Which of an expert's next steps become combinations."""

import dataclasses

from environments.protocol import State
from mlagent_jax.agents.episodes import Trajectory
from mlagent_jax.collection.stage import combine

STATE = State("wine@1", (), "s", "x = 0", 0.5, operator="improve")


def trajectories(operators, split="train"):
    return [
        Trajectory(split, i, dataclasses.replace(STATE, script=f"x = {i}", operator=kind), seed=f"{split}/{i}")
        for i, kind in enumerate(operators)
    ]


def test_improvements_alone_are_combined_with_another_script_of_the_task_that_ran():
    played = trajectories(["improve"] * 40 + ["debug"] * 5 + ["draft"] * 5) + trajectories(["improve"], "held_out")
    combine(played, 0.5)
    combined = [t for t in played if t.state.operator == "combine"]
    assert 10 <= len(combined) <= 30
    for t in combined:
        assert t.split == "train"
        assert t.state.other != t.state.script
        assert t.state.other in {f"x = {i}" for i in range(40)}
    again = trajectories(["improve"] * 40 + ["debug"] * 5 + ["draft"] * 5) + trajectories(["improve"], "held_out")
    combine(again, 0.5)
    assert [t.state for t in again] == [t.state for t in played]


def test_steps_without_kinds_stay_without():
    played = trajectories([""] * 20)
    combine(played, 1.0)
    assert {t.state.operator for t in played} == {""}
