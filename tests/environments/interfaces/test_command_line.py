"""The command line and the Gymnasium form; the marked ones take real steps in a bubblewrap sandbox."""

import io
import json
import os

import needs
import pytest

import environments
from environments import tasks
from environments.actions import ACTIONS, Action
from environments.files.blobs import open_store
from environments.interfaces.command_line import main
from environments.protocol import Outcome, OutcomeKind

TASK = "wine"
RUN = Action("Execute Script", {"script_name": "train.py"}).render()
BETTER = Action(
    "Edit Script (Cell)",
    {"script_name": "train.py", "cell": "features"},
    "from sklearn.preprocessing import StandardScaler\nsteps = [StandardScaler()]",
).render()
BROKEN = Action("Edit Script (Cell)", {"script_name": "train.py", "cell": "model"}, "model = =").render()
FINAL = Action("Final Answer", {"final_answer": "done"}).render()


@pytest.fixture(scope="module")
def sandbox():
    sandbox = needs.sandbox("bubblewrap")
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def cache_dir(sandbox, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    tasks.prepare(TASK, folder / "tasks", 0, sandbox)
    return folder


def test_list_as_json_names_every_task(capfd):
    assert main(["list", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert [task["name"] for task in listed] == list(tasks.names())
    assert {task["split"] for task in listed} == {"train", "held_out"}
    assert all(task["metric"] and task["kind"] and task["source"] for task in listed)


def test_list_prints_one_line_a_task(capsys):
    assert main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(tasks.names())


def test_list_names_the_papers_tasks_when_asked(capsys):
    assert main(["list", "--paper"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(tasks.paper.names()) and len(listed) == 19


def test_show_prints_the_research_problem(capsys):
    assert main(["show", TASK]) == 0
    assert tasks.get(TASK).spec.description.strip() in capsys.readouterr().out


@pytest.mark.parametrize("profile", ["compact", "full"])
def test_actions_prints_what_a_reply_may_hold(capsys, profile):
    assert main(["actions", "--profile", profile]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name, spec in ACTIONS.items() if spec.shown)


@pytest.mark.parametrize("command", [["show", "wind"], ["prepare", "wind"], ["play", "wind"]])
def test_an_unknown_task_is_an_error_that_names_the_nearest(capsys, command):
    assert main(command) == 2
    assert "did you mean 'wine'" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["List Files", '{"reply": "x"}', '{"action": 3}', "[]"])
def test_a_broken_line_of_actions_is_named_before_anything_runs(capsys, tmp_path, line):
    path = tmp_path / "actions.jsonl"
    path.write_text(f"{json.dumps({'action': RUN})}\n\n{line}\n")
    assert main(["run", TASK, "--actions", str(path)]) == 2
    assert "line 3" in capsys.readouterr().err


def test_a_missing_file_of_actions_is_an_error(capsys, tmp_path):
    assert main(["run", TASK, "--actions", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl cannot be read" in capsys.readouterr().err
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert main(["run", TASK, "--actions", str(empty)]) == 2
    assert "empty.jsonl has no actions" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_and_a_negative_seed_are_errors_of_one_line(capsys, tmp_path):
    taken = tmp_path / "file"
    taken.touch()
    assert main(["serve", TASK, "--cache-dir", str(taken)]) == 2
    message = capsys.readouterr().err
    assert "cannot be written" in message
    assert message.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["serve", TASK, "--seed", "-1"])
    assert "'-1' is no whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument", [{"reward": "none"}, {"profile": "short"}, {"max_steps": 0}, {"seed": -1}, {"seed": "1"}]
)
def test_make_names_an_argument_that_cannot_be_used(argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))} is {next(iter(argument.values()))!r}"):
        environments.make(TASK, **argument)


def test_run_prints_one_outcome_a_line(capfd, tmp_path, cache_dir):
    path = tmp_path / "actions.jsonl"
    path.write_text("".join(json.dumps({"action": action}) + "\n" for action in (RUN, BETTER, "x", BROKEN, FINAL, RUN)))
    command = ["run", TASK, "--actions", str(path), "--sandbox", "bubblewrap", "--json", "--cache-dir", str(cache_dir)]
    assert main(command) == 0
    captured = capfd.readouterr()
    outcomes = [json.loads(line) for line in captured.out.splitlines()]
    assert [outcome["outcome"] for outcome in outcomes] == [
        "no_edit",
        "scored",
        "invalid_action",
        "script_error",
        "no_edit",
    ]
    assert "ended at action 5 of 6" in captured.err
    for outcome in outcomes:
        assert {"outcome", "reward", "metric", "observation", "seconds"} <= set(outcome)
    scored = outcomes[1]
    assert scored["reward"] > 0.5
    assert scored["metric"] < scored["metric_before"]
    assert scored["seconds"] > 0
    assert f"{scored['metric']:.3f}" not in scored["observation"]
    assert "SyntaxError" in outcomes[3]["observation"]


def test_clean_deletes_old_snapshots_down_to_a_size(capsys, tmp_path):
    store = open_store(tmp_path / "store")
    identities = [store.put(bytes([number]) * 100_000) for number in range(3)]
    for blob in store.blobs():
        if blob.id != identities[2]:
            os.utime(next((tmp_path / "store").rglob(blob.id)), (0, 0))
    assert main(["clean", "--cache-dir", str(tmp_path), "--max-gb", "0.0002"]) == 0
    assert "1 files deleted, 0.1 MB; 0.2 MB kept" in capsys.readouterr().out
    assert main(["clean", "--cache-dir", str(tmp_path), "--max-gb", "0"]) == 0
    assert [store.has(identity) for identity in identities] == [False, False, True], "the last hour's stay"
    with pytest.raises(SystemExit):
        main(["clean", "--max-gb", "-1"])


def test_play_reads_replies_ended_by_a_dot(capsys, monkeypatch, cache_dir):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{RUN}\n.\n{FINAL}\n.\nignored\n.\n"))
    assert main(["play", TASK, "--cache-dir", str(cache_dir)]) == 0
    printed = capsys.readouterr().out
    assert "Research Problem:" in printed
    assert printed.count("Observation:\n") == 2
    assert "no_edit: reward 0.100" in printed
    assert printed.endswith("The episode is over.\n")


def test_play_takes_the_last_reply_of_a_pipe_without_a_dot(capsys, monkeypatch, cache_dir):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{RUN}\n"))
    assert main(["play", TASK, "--cache-dir", str(cache_dir)]) == 0
    assert "no_edit: reward 0.100" in capsys.readouterr().out


def test_make_gives_the_gymnasium_interface(sandbox, cache_dir):
    with environments.make(TASK, sandbox=sandbox, cache_dir=cache_dir, max_steps=3, cache=False) as episode:
        observation, info = episode.reset()
        assert "train.py" in observation
        assert info["state"].history == ()
        observation, reward, terminated, truncated, info = episode.step(BETTER)
        assert isinstance(info["outcome"], Outcome)
        assert info["outcome"].kind is OutcomeKind.SCORED
        assert reward > 0.5
        assert (terminated, truncated) == (False, False)
        assert "validation" in observation
        assert episode.state.metric == info["outcome"].metric_after
        episode.step("x")
        assert episode.step(FINAL)[2:4] == (True, True)
        assert episode.reset()[1]["state"].history == ()


def test_the_full_profile_and_published_rewards_through_make(sandbox, cache_dir):
    labels = "Reflection: a\nResearch Plan and Status: b\nFact Check: c\nThought: d\n"
    with environments.make(TASK, sandbox=sandbox, cache_dir=cache_dir, profile="full", reward="paper_v2") as episode:
        observation, reward, *_ = episode.step(labels + BROKEN)
        assert reward == -1.0
        assert observation.startswith("The edited file is saved to train.py.")
        assert "SyntaxError: invalid syntax" in observation
        assert "/workspace" in observation
        assert str(cache_dir) not in observation
        assert episode.step(BETTER)[1] == -1.0


def test_labels_are_out_of_reach_and_a_search_for_them_earns_nothing(sandbox, cache_dir):
    search = (
        "import glob, os\n"
        f"places = ['{cache_dir}', '/home', '/root', '/tmp', '/var', '/workspace', '/mnt']\n"
        "found = [path for place in places for path in glob.glob(place + '/**/answers*', recursive=True)]\n"
        f"assert not found and not os.path.exists('../private') and not os.path.exists('{cache_dir}')\n"
        "raise SystemExit('out of reach')"
    )
    action = Action("Edit Script (Cell)", {"script_name": "train.py", "cell": "features"}, search).render()
    with environments.make(TASK, sandbox=sandbox, cache_dir=cache_dir, cache=False) as episode:
        observation, reward, *_ = episode.step(action)
        assert observation == "out of reach"
        assert reward == 0.05
