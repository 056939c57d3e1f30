"""Selection of ideas: distinct, diverse within the bound of greedy k-centre, the same for a seed."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from environments import tasks
from environments.actions.openai_http import Completion
from mlagent_jax.collection.ideas import distinct, endpoint_ideas, farthest_points, library_ideas, parse_ideas
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.hosts import EndpointConfig
from mlagent_jax.settings.stages import IdeasConfig


def radius(vectors, centres):
    distances = np.linalg.norm(vectors[:, None] - vectors[None, list(centres)], axis=-1)
    return distances.min(axis=1).max()


@settings(max_examples=150, deadline=None)
@given(
    vectors=arrays(float, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=st.floats(-9, 9, width=16)),
    count=st.integers(1, 5),
    data=st.data(),
)
def test_farthest_points_cover_within_twice_the_optimum(vectors, count, data):
    first = data.draw(st.integers(0, len(vectors) - 1))
    chosen = farthest_points(vectors, count, first)
    assert len(chosen) == len(set(chosen)) == min(count, len(vectors))
    best = min(radius(vectors, each) for each in itertools.combinations(range(len(vectors)), len(chosen)))
    assert radius(vectors, chosen) <= 2 * best + 1e-9


def test_what_differs_in_case_spaces_and_punctuation_alone_is_one_idea():
    assert distinct(["Add a ridge!", "add  a Ridge", "", "...", "add two ridges"]) == [0, 4]


def test_ten_of_the_library_are_kept_by_the_seed_and_they_are_more_diverse_than_others():
    task = tasks.get("digits")
    config, script = IdeasConfig(keep=10), task.start.text()
    kept = library_ideas(task.spec, script, config, "0/digits")
    assert kept == library_ideas(task.spec, script, config, "0/digits")
    assert kept != library_ideas(task.spec, script, config, "1/digits")
    assert len(kept) == len({idea.code for idea in kept}) == 10
    assert len({idea.cell for idea in kept}) >= 4


class Speaker:
    """A language model that gives numbered ideas, half of which it gave before."""

    config = EndpointConfig(url="http://any", model="speaker")

    def __init__(self, most):
        self.asked, self.most = [], most

    def chat(self, messages, *, seed):
        self.asked.append(messages[0]["content"])
        numbers = range(min(10 * seed, self.most), min(10 * seed + 20, self.most))
        return Completion("Sure:\n" + "\n".join(f"{n + 1}. Try a model of kind {n}" for n in numbers))


def test_a_language_model_is_asked_until_there_are_enough_distinct_ideas_which_are_kept_in_a_file(tmp_path):
    spec, speaker, path = tasks.get("digits").spec, Speaker(1000), tmp_path / "ideas" / "digits.json"
    kept = endpoint_ideas(spec, IdeasConfig(keep=10), "0", speaker, path)
    assert len(set(kept)) == 10
    assert all(idea.startswith("Try a model of kind") for idea in kept)
    assert spec.description.strip() in speaker.asked[0]
    assert "Try a model of kind 3" in speaker.asked[1]
    count = len(speaker.asked)
    assert endpoint_ideas(spec, IdeasConfig(keep=10), "0", speaker, path) == kept
    assert len(speaker.asked) == count
    with pytest.raises(ConfigError, match="gave 30 distinct ideas for digits"):
        endpoint_ideas(spec, IdeasConfig(keep=10), "0", Speaker(30), tmp_path / "other.json")


def test_ideas_are_read_from_lists_with_words_around_and_from_plain_lines():
    assert parse_ideas("Here:\n- **use ridge**\n* scale\n2) bin 3 columns\n\nGood luck!") == [
        "use ridge",
        "scale",
        "bin 3 columns",
    ]
    assert parse_ideas("use ridge\n\nscale\n") == ["use ridge", "scale"]
