"""The scripted expert: varied, reproducible, recovering, and in the grammar of both profiles."""

import collections
import dataclasses

import pytest

from environments import tasks
from environments.actions import parse
from environments.actions.edits import read_cells, replace_cell
from environments.protocol import Job, Outcome, OutcomeKind, Scale, State, Step
from environments.tasks.generated.ideas import ideas_for
from environments.tasks.generated.scripts import Script
from mlagent_jax.agents.episodes import Reply, Trajectory
from mlagent_jax.agents.episodes import Step as AgentStep
from mlagent_jax.agents.factory import ScriptedAgent
from mlagent_jax.agents.scripted import ScriptedExpert
from mlagent_jax.settings.stages import CollectConfig

SPEC = tasks.get("micro-rings-0").spec
SCRIPT = Script("LogisticRegression(C=0.01)").text()
STATE = State("micro-rings-0@1", (), "snapshot", SCRIPT, 0.5)


def expert(seed, profile="compact", **rates):
    return ScriptedExpert(SPEC, SCRIPT, CollectConfig(**rates), profile, seed)


@pytest.mark.parametrize("profile", ["compact", "full"])
def test_every_move_is_in_the_grammar(profile):
    for seed in range(60):
        move = expert(str(seed), profile).propose(STATE, None, None)
        assert parse(move.text, profile).name in ("Edit Script (Cell)", "Execute Script", "List Files")


def test_the_same_seed_makes_the_same_moves():
    moves = [expert("7").propose(STATE, None, None).text for _ in range(2)]
    assert moves[0] == moves[1]


def test_prompts_carry_one_to_three_ideas_of_the_library():
    library = {idea.text for idea in ideas_for(SPEC, SCRIPT)}
    counts = collections.Counter()
    for seed in range(90):
        ideas = expert(str(seed)).ideas
        assert set(ideas) <= library
        counts[len(ideas)] += 1
    assert set(counts) == {1, 2, 3}


def test_first_edits_are_varied():
    actions = {expert(str(seed), look_rate=0.0, error_rate=0.0).propose(STATE, None, None).text for seed in range(60)}
    assert len(actions) > 25


def test_the_first_edit_tries_an_idea_of_the_prompt():
    for seed in range(20):
        one = expert(str(seed), look_rate=0.0, error_rate=0.0)
        assert one.propose(STATE, None, None).intended.text == one.ideas[0]


def test_a_deliberate_error_is_no_target_and_the_next_edit_repairs_it():
    for seed in range(20):
        one = expert(str(seed), look_rate=0.0, error_rate=1.0)
        broken = one.propose(STATE, None, None)
        assert broken.broken
        repair = one.propose(STATE, broken, OutcomeKind.SCRIPT_ERROR)
        assert not repair.broken
        assert broken.intended.code.rstrip() in repair.text
        assert f"\n{broken.intended.code.rstrip()}\n```" not in broken.text


def test_left_alone_it_has_a_few_favourites_and_no_ideas_in_its_prompt():
    def first(seed, habit):
        one = ScriptedExpert(
            SPEC, SCRIPT, CollectConfig(look_rate=0.0, error_rate=0.0), "compact", str(seed), None, habit
        )
        assert one.ideas == ()
        return one.propose(STATE, None, None).intended.text

    counted = collections.Counter(first(seed, "h") for seed in range(60))
    assert len(counted) < 15 and counted.most_common(1)[0][1] > 25
    assert (
        counted.most_common(1)[0][0] != collections.Counter(first(seed, "k") for seed in range(60)).most_common(1)[0][0]
    )


def kind(operator, **fields):
    return dataclasses.replace(STATE, operator=operator, **fields)


def test_a_step_of_a_kind_follows_from_the_state_alone_and_changes_the_script():
    for seed in range(20):
        for operator in ("draft", "improve"):
            move = expert(str(seed), error_rate=0.0, look_rate=1.0).propose(kind(operator), None, None)
            action = parse(move.text, "compact")
            assert action.name == "Edit Script (Cell)"
            assert read_cells(SCRIPT)[action.arguments["cell"]] != move.intended.code


def test_a_repair_finds_the_idea_that_the_failed_edit_meant():
    found = 0
    for seed in range(30):
        broken = expert(str(seed), error_rate=1.0).propose(kind("improve"), None, None)
        script = replace_cell(SCRIPT, broken.intended.cell, broken.text.split("```python\n")[1].removesuffix("\n```"))
        failed = kind("debug", script=script, history=(Step(broken.text, "NameError"),))
        repair = expert(f"other {seed}").propose(failed, None, None)
        assert repair.intended.cell == broken.intended.cell
        assert not repair.broken
        found += repair.intended.code == broken.intended.code
    assert found >= 25


def test_a_combination_takes_a_cell_of_the_second_script():
    other = replace_cell(SCRIPT, "model", "model = 7")
    move = expert("1").propose(kind("combine", other=other), None, None)
    assert "model = 7" in move.text
    same = expert("1", error_rate=0.0).propose(kind("combine", other=SCRIPT), None, None)
    assert parse(same.text, "compact").name == "Edit Script (Cell)"


def test_an_expert_that_was_stopped_repairs_an_error_of_before():
    """Its steps were read back from a file, without what it meant."""
    made = []
    agent = ScriptedAgent(lambda t: expert(t.seed, look_rate=0.0, error_rate=1.0))
    trajectory = Trajectory("train", 0, STATE, seed="5")
    for _ in range(2):
        (action,) = agent.act([trajectory], 0)
        made.append(action)
        job = Job("r", 0, trajectory.state, 0, action.text)
        outcome = Outcome(OutcomeKind.SCRIPT_ERROR, "no", "s", SCRIPT, 0.5, None, Scale(0.5, 0.9, True), 0.0)
        trajectory.take(AgentStep(action, job, outcome, 0.0))
    again = Trajectory("train", 0, STATE, seed="5")
    again.take(trajectory.steps[0]._replace(action=Reply(made[0].text)))
    assert ScriptedAgent(lambda t: expert(t.seed, look_rate=0.0, error_rate=1.0)).act([again], 0) == [made[1]]
    assert made[0].broken and not made[1].broken
