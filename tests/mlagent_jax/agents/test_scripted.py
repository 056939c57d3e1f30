"""The scripted expert: varied, reproducible, recovering, and in the grammar of both profiles."""

import collections

import pytest

from environments import tasks
from environments.actions import parse
from environments.protocol import OutcomeKind, State
from environments.tasks.generated.ideas import ideas_for
from environments.tasks.generated.scripts import Script
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
