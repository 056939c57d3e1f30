"""The JSON-lines protocol: a real process at the other end, and what it answers to what clients get wrong."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import fakes
import needs
import pytest
from fuzzing import few, json_trees
from hypothesis import given
from hypothesis import strategies as st

from environments import tasks
from environments.actions import Action
from environments.episode import Episode
from environments.files.blobs import open_store
from environments.interfaces.json_lines import MAX_REQUEST_BYTES, serve
from environments.sandbox import SandboxError
from environments.step import Environment

ROOT = Path(__file__).parents[3]
TASK = "micro-rings-0"
RUN = Action("Execute Script", {"script_name": "train.py"}).render()
BETTER = Action(
    "Edit Script (Cell)",
    {"script_name": "train.py", "cell": "model"},
    "from sklearn.svm import SVC\nmodel = SVC(probability=True)",
).render()
FINAL = Action("Final Answer", {"final_answer": "done"}).render()


@pytest.fixture
def sandbox():
    return fakes.FakeSandbox()


@pytest.fixture
def episode(tmp_path, sandbox, monkeypatch):
    task = fakes.fake_task(tmp_path / "task")
    monkeypatch.setattr("environments.step.open_task", lambda root, key: task)
    (tmp_path / "tasks").mkdir()
    environment = Environment(tmp_path / "tasks", sandbox, open_store(tmp_path / "store"))
    with Episode(environment, task.key, max_steps=2) as episode:
        yield episode


def talk(episode, *requests):
    """Answers to `requests`, each an object or a line of bytes; the greeting is left out."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in requests]
    answers = io.BytesIO()
    serve(episode, io.BytesIO(b"\n".join(lines)), answers)
    greeting, *rest = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert greeting["protocol"] == 1
    return rest


RESET = {"command": "reset"}


def step(action):
    return {"command": "step", "action": action}


def test_every_request_has_one_answer_that_repeats_its_id(episode):
    answers = talk(episode, {**RESET, "id": 7}, b"", {**step("x"), "id": "b"}, {"command": "close", "id": None}, RESET)
    assert [answer["id"] for answer in answers] == [7, "b", None]
    assert all(answer["ok"] for answer in answers)


def test_the_end_of_the_input_is_the_end(episode):
    assert [answer["ok"] for answer in talk(episode, RESET)] == [True]


def test_an_episode_must_be_begun_and_ends_with_its_steps(episode):
    answers = talk(
        episode, step("x"), RESET, step("x"), step("x"), step("x"), {**RESET, "seed": 3}, step(FINAL), step("x")
    )
    assert [answer.get("error", {}).get("kind") for answer in answers] == [
        *("no_episode", None, None, None, "no_episode"),
        *(None, None, "no_episode"),
    ]
    assert [answers[3][flag] for flag in ("terminated", "truncated")] == [False, True]
    assert [answers[6][flag] for flag in ("terminated", "truncated")] == [True, False]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (b"step", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "a request is an object"),
        (b'{"command": "reset", "id": NaN}', "NaN"),
        (b'{"command": "reset", "id": [1e999]}', "1e999"),
        ({"action": "x"}, "command is None"),
        ({"command": ["step"]}, "command is"),
        ({"command": "stepp", "action": "x"}, "'stepp'"),
        ({"command": "step"}, "action is None"),
        ({"command": "step", "action": 3}, "action is 3"),
        ({"command": "step", "action": "x", "seed": 3}, "no field 'seed'"),
        ({"command": "reset", "seed": True}, "seed is True"),
        (b'{"command": "step", "action": "' + b"x" * MAX_REQUEST_BYTES + b'"}', "at most"),
    ],
)
def test_a_wrong_request_is_answered_with_a_remedy_and_the_next_is_served(episode, request_, said):
    wrong, after = talk(episode, request_, RESET)
    assert (wrong["ok"], wrong["error"]["kind"], after["ok"]) == (False, "bad_request", True)
    assert said in wrong["error"]["message"]
    assert wrong["error"]["remedy"]


@few
@given(
    st.binary(max_size=200)
    | json_trees.map(lambda tree: json.dumps(tree).encode())
    | st.fixed_dictionaries(
        {"command": st.sampled_from(["reset", "step", "close "]) | json_trees},
        optional={name: json_trees for name in ("action", "seed", "id", "other")},
    ).map(lambda tree: json.dumps(tree).encode())
)
def test_any_line_has_an_answer_and_the_next_is_served(episode, line):
    answers = talk(episode, line.replace(b"\n", b" "), RESET)
    assert len(answers) == 1 + bool(line.strip())
    assert answers[-1]["ok"]


def test_a_failure_of_the_sandbox_is_told_and_the_step_can_be_taken_again(episode, sandbox):
    sandbox.failures.append(SandboxError("the host is on fire"))
    _, failed, again = talk(episode, RESET, step(RUN), step(RUN))
    assert failed["error"]["kind"] == "infrastructure"
    assert "on fire" in failed["error"]["message"]
    assert (again["ok"], again["info"]["outcome"]) == (True, "no_edit")


def test_no_label_is_in_any_answer(episode):
    edit = Action("Edit Script (Cell)", {"script_name": "train.py", "cell": "model"}, "guess = 2.0").render()
    answers = talk(episode, RESET, step(edit))
    assert answers[1]["info"]["outcome"] == "scored"
    assert str(fakes.LABEL) not in json.dumps(answers)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    sandbox = needs.sandbox("bubblewrap")
    tasks.prepare(TASK, folder / "tasks", 0, sandbox)
    sandbox.close()
    return folder


def process(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "environments", "serve", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_a_scaffold_takes_real_steps_in_another_process(cache_dir):
    with process(TASK, "--cache-dir", str(cache_dir), "--sandbox", "bubblewrap") as server:

        def ask(request):
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        greeting = json.loads(server.stdout.readline())
        assert (greeting["task"], greeting["max_steps"]) == (TASK, 15)
        assert "train.py" in ask(RESET)["observation"]
        scored = ask(step(BETTER))
        assert (scored["info"]["outcome"], scored["terminated"]) == ("scored", False)
        assert 0 < scored["reward"] <= 1
        assert ask(step("x"))["info"]["outcome"] == "invalid_action"
        assert ask({"command": "close"}) == {"ok": True}
        assert (server.wait(60), server.stdout.read()) == (0, "")


@pytest.mark.slow
def test_a_task_that_cannot_be_had_is_told_on_both_streams(cache_dir):
    with process("wind", "--cache-dir", str(cache_dir)) as server:
        said, warned = server.communicate(timeout=60)
    error = json.loads(said)["error"]
    assert (error["kind"], server.returncode) == ("start", 2)
    assert "did you mean 'wine'" in error["message"]
    assert "did you mean 'wine'" in warned


@pytest.mark.slow
def test_gymnasium_makes_and_checks_the_environment(cache_dir):
    gymnasium = needs.package("gymnasium")
    from gymnasium.utils.env_checker import check_env

    name = "environments.interfaces.gymnasium_env:mlagent/Task-v0"
    env = gymnasium.make(name, task=TASK, cache_dir=cache_dir, max_steps=2)
    try:
        check_env(env.unwrapped)
        observation, _ = env.reset(seed=1)
        assert env.observation_space.contains(observation)
        _, reward, terminated, truncated, info = env.step(BETTER)
        assert (terminated, truncated, info["outcome"].kind) == (False, False, "scored")
        assert 0 < reward <= 1
        assert env.step("x")[3] is True
    finally:
        env.close()
