"""The scripted expert: varied, reproducible, recovering, and in the grammar of both profiles."""

import collections
import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments import tasks
from environments.actions import PROFILES, ActionError, AgentFiles, parse
from environments.actions.edits import apply_patch, replace_cell
from environments.protocol import OutcomeKind, State, Step
from environments.tasks.generated.ideas import ideas_for
from environments.tasks.generated.scripts import Script
from mlagent_jax.agents import free_edits
from mlagent_jax.agents.scripted import ScriptedExpert
from mlagent_jax.settings.stages import CollectConfig

SPEC = tasks.get("micro-rings-0").spec
SCRIPT = Script("LogisticRegression(C=0.01)").text()
STATE = State("micro-rings-0@1", (), "snapshot", SCRIPT, 0.5)


def expert(seed, profile="compact", **rates):
    return ScriptedExpert(SPEC, SCRIPT, CollectConfig(**rates), profile, seed)


@pytest.mark.parametrize("profile", list(PROFILES))
def test_every_move_is_in_the_grammar(profile):
    for seed in range(60):
        action = parse(expert(str(seed), profile).propose(STATE, None, None).text, profile)
        offered = PROFILES[profile].listed or ("Edit Script (Cell)", "Execute Script", "List Files")
        assert action.name in offered and not action.repairs


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


def test_free_edits_say_one_change_in_several_forms_that_all_apply(tmp_path):
    idea = next(idea for idea in ideas_for(SPEC, SCRIPT) if idea.cell == "model" and "Forest" in idea.code)
    new, forms = replace_cell(SCRIPT, idea.cell, idea.code), collections.Counter()
    for seed in range(40):
        action = free_edits.edit("train.py", SCRIPT, idea.cell, idea.code, random.Random(seed))
        (tmp_path / "train.py").write_text(SCRIPT)
        effect = parse(action.render(), "medium").apply(AgentFiles(tmp_path))
        assert (tmp_path / "train.py").read_text() == new and not effect.repairs
        forms[action.name, action.block] += 1
        if (wrong := free_edits.misquoted(action, random.Random(seed))) is not None:
            (tmp_path / "train.py").write_text(SCRIPT)
            with pytest.raises(ActionError):
                wrong.apply(AgentFiles(tmp_path))
    assert {name for name, _ in forms} == set(free_edits.FORMS)
    assert len(forms) > 3  # a patch quotes more or less around the change


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("ab "), max_size=8), st.lists(st.sampled_from("ab "), max_size=8), st.integers(0, 2))
def test_a_patch_of_any_two_scripts_applies_or_there_is_none(before, after, context):
    old, new = "\n".join(["start", *before, "end"]), "\n".join(["start", *after, "end"])
    patch = free_edits.as_patch(old, new, context)
    assert (apply_patch(old, patch) == (new, False)) if old != new else not patch


def test_the_free_expert_words_its_thoughts_variously_and_mends_what_it_broke():
    moves = [expert(str(seed), "medium", look_rate=0.0).propose(STATE, None, None) for seed in range(80)]
    frames = {move.text.split("\n")[0].replace(move.intended.text, "IDEA") for move in moves}
    assert len(frames) > 8
    for seed in range(40):
        one = expert(str(seed), "medium", look_rate=0.0, error_rate=1.0)
        broken = one.propose(STATE, None, None)
        assert broken.broken
        after = dataclasses.replace(STATE, history=(Step(broken.text, "EnvError: no line is `x`."),))
        repair = one.propose(after, broken, OutcomeKind.INVALID_ACTION)
        assert not repair.broken and repair.intended == broken.intended


def test_the_free_expert_undoes_an_edit_that_made_the_printed_score_worse():
    one = expert("3", "medium", look_rate=0.0, error_rate=0.0)
    last = one.propose(STATE, None, None)

    def answers(*scores):
        history = tuple(Step("Action: x", f"validation accuracy {score} train 1") for score in scores)
        state = dataclasses.replace(STATE, history=history)
        return [
            expert(str(seed), "medium", look_rate=0.0).propose(state, last, OutcomeKind.SCORED).text
            for seed in range(20)
        ]

    worse = [text for text in answers("0.8", "0.75") if "Action: Undo Edit Script" in text]
    assert 5 < len(worse) < 16 and all(("0.8" in text and "0.75" in text) or "worse" in text for text in worse)
    assert not any("Action: Undo" in text for text in answers("0.8", "0.85") + answers("0.8"))
