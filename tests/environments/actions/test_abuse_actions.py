"""Abuse through what an agent writes: paths, names, replies and what its scripts leave for the next step.

Each attack ends in a typed outcome, leaves the host as it was, and earns at most what the same step without it earns.
The numbers are those of the list of abuse cases that every sandbox and environment is held to.
"""

import dataclasses
import functools
import json
import os

import fakes
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from environments.actions import ACTIONS, PROFILES, Action, ActionError, AgentFiles, parse
from environments.actions.vocabulary import Kind
from environments.files.snapshots import Snapshots
from environments.protocol import Job, OutcomeKind
from environments.sandbox.base import Ending, Execution

SECRET = "the answer is 3.25"
PATH_ARGUMENTS = [
    ("List Files", {"dir_path": "PATH"}, None),
    ("Read File", {"file_name": "PATH"}, None),
    ("Write File", {"file_name": "PATH", "content": "owned"}, None),
    ("Append File", {"file_name": "PATH", "content": "owned"}, None),
    ("Copy File", {"source": "PATH", "destination": "stolen.txt"}, None),
    ("Copy File", {"source": "train.py", "destination": "PATH"}, None),
    ("Undo Edit Script", {"script_name": "PATH"}, None),
    ("Execute Script", {"script_name": "PATH"}, None),
    ("Inspect Script Lines", {"script_name": "PATH", "start_line_number": 1, "end_line_number": 9}, None),
    ("Edit Script (Cell)", {"script_name": "PATH", "cell": "model"}, "owned = 1"),
    ("Edit Script (Lines)", {"script_name": "PATH", "start_line_number": 1, "end_line_number": 1}, "owned = 1"),
    ("Edit Script (Whole)", {"script_name": "PATH"}, "owned = 1"),
    ("Edit Script (Patch)", {"script_name": "PATH"}, "<<<<<<< SEARCH\nx\n=======\nowned\n>>>>>>> REPLACE"),
]
EVERY_PATH_ARGUMENT = pytest.mark.parametrize(
    ("name", "arguments", "block"),
    PATH_ARGUMENTS,
    ids=[
        f"{name}, {next(key for key, value in arguments.items() if value == 'PATH')}"
        for name, arguments, _ in PATH_ARGUMENTS
    ],
)


@pytest.fixture
def files(tmp_path):
    """A workspace `ws` beside a folder of secrets `ws2` and the task's labels, as attacks would like to find them."""
    root, public = tmp_path / "ws", tmp_path / "public"
    for folder in (root, public, tmp_path / "ws2", tmp_path / "private"):
        folder.mkdir()
        (folder / "secret.py").write_text(f"# %% model\nx\n# {SECRET}\n")
    (root / "secret.py").unlink()
    (public / "secret.py").unlink()
    (public / "train.csv").write_text("3.0")
    (root / "train.py").write_text(fakes.TRAIN)
    (root / "helper.py").write_text(fakes.HELPER)
    return AgentFiles(root, data=public, read_only=("helper.py",))


def outside(files):
    """Everything around the workspace, to see that it stays as it was."""
    parent = files.root.parent
    return {
        str(path): path.read_bytes() for path in parent.rglob("*") if path.is_file() and files.root not in path.parents
    }


def with_path(arguments, path):
    return {key: path if value == "PATH" else value for key, value in arguments.items()}


def refuse(files, name, arguments, block, path):
    before = outside(files)
    with pytest.raises(ActionError) as raised:
        Action(name, with_path(arguments, path), block).apply(files)
    assert outside(files) == before
    assert SECRET not in raised.value.message
    assert str(files.root.parent) not in raised.value.message.replace(path, "")
    assert not (files.root / "stolen.txt").exists()


@EVERY_PATH_ARGUMENT
@pytest.mark.parametrize(
    "path",
    ["../ws2/secret.py", "data/../../private/secret.py", "./.././ws2/secret.py", "data/../../public/../ws2/secret.py"],
)
def test_5_paths_that_climb_out_are_refused(files, name, arguments, block, path):
    refuse(files, name, arguments, block, path if name != "List Files" else os.path.dirname(path))


@EVERY_PATH_ARGUMENT
def test_6_a_sibling_with_the_same_prefix_is_outside(files, name, arguments, block):
    refuse(files, name, arguments, block, str(files.root.parent / "ws2" / "secret.py"))
    refuse(files, name, arguments, block, "../ws2/secret.py")


@EVERY_PATH_ARGUMENT
def test_4_links_out_of_the_workspace_are_not_followed(files, name, arguments, block):
    (files.root / "folder").symlink_to(files.root.parent / "ws2")
    (files.root / "file.py").symlink_to(files.root.parent / "ws2" / "secret.py")
    (files.root / "loop.py").symlink_to("loop.py")
    for path in ("folder/secret.py", "file.py", "loop.py", "folder/../secret.py"):
        refuse(files, name, arguments, block, path)


@pytest.mark.parametrize(
    "path",
    [
        "helper.py",
        "./helper.py",
        "sub/../helper.py",
        ".//helper.py",
        "link.py",
        "data/train.csv",
        "./data/../data/train.csv",
        "data/new.csv",
    ],
)
@pytest.mark.parametrize("number", [2, 3, 5, 9, 10, 11])
def test_7_read_only_files_are_read_only_by_any_name(files, path, number):
    (files.root / "sub").mkdir()
    (files.root / "link.py").symlink_to("helper.py")
    name, arguments, block = PATH_ARGUMENTS[number]
    before = outside(files)
    with pytest.raises(ActionError, match="read-only"):
        Action(name, with_path(arguments, path), block).apply(files)
    assert (files.root / "helper.py").read_text() == fakes.HELPER
    assert outside(files) == before


@pytest.mark.parametrize(
    "path",
    ["train.py; touch owned", "$(touch owned)", "`touch owned`", "train.py && touch owned", "| touch owned", "-c", "*"],
)
def test_8_shell_metacharacters_are_characters(files, path):
    with pytest.raises(ActionError):
        Action("Execute Script", {"script_name": path}).apply(files)
    assert not (files.root / "owned").exists()


def test_8_a_script_whose_name_is_an_option_is_not_executed(files):
    (files.root / "-c").write_text("x")
    for path in ("-c", "./-c"):
        with pytest.raises(ActionError, match="dash"):
            Action("Execute Script", {"script_name": path}).apply(files)


@EVERY_PATH_ARGUMENT
@pytest.mark.parametrize(
    "path", ["", "a\0b", "a\nb", "\x1b[2J", "a" * 100_000, "é" * 190, "/".join("a" * 150), "\u202ea"]
)
def test_9_names_that_are_none_are_refused(files, name, arguments, block, path):
    if path == "" and name == "List Files":
        assert "train.py" in Action(name, {"dir_path": ""}).apply(files).message
        return
    refuse(files, name, arguments, block, path)


def test_9_oversized_content_is_refused(files):
    with pytest.raises(ActionError, match="larger"):
        files.write("big.txt", "x" * ((1 << 20) + 1))
    (files.root / "sparse").touch()
    os.truncate(files.root / "sparse", 1 << 40)
    with pytest.raises(ActionError, match="at most"):
        files.read("sparse")


def test_9_a_reply_of_any_size_is_answered(files):
    for reply in ("x" * 10_000_000, "Action: " * 1_000_000, "`" * 5_000_000, "Action Input: {" * 500_000):
        with pytest.raises(ActionError, match="at most"):
            parse(reply, PROFILES["compact"])


@pytest.mark.parametrize("kind", ["fifo", "folder"])
@EVERY_PATH_ARGUMENT
def test_what_is_no_regular_file_never_blocks_an_action(files, name, arguments, block, kind):
    target = files.root / "odd.py"
    os.mkfifo(target) if kind == "fifo" else target.mkdir()
    if name == "List Files" and kind == "folder":
        assert Action(name, {"dir_path": "odd.py"}).apply(files).message == ""
        return
    refuse(files, name, arguments, block, "odd.py")


def test_a_backup_folder_that_a_script_turned_into_a_link_is_not_followed(files):
    (files.root / "backup").symlink_to(files.root.parent / "ws2")
    refuse(files, "Edit Script (Cell)", {"script_name": "PATH", "cell": "model"}, "guess = 2", "train.py")
    assert (files.root / "train.py").read_text() == fakes.TRAIN


# -- through whole steps; those with a script of hostile content are in sandbox/test_abuse_steps.py --


@pytest.fixture
def player(tmp_path):
    with fakes.playing(fakes.FakeSandbox(), tmp_path / "steps") as player:
        yield player


def test_many_files_written_by_actions_end_in_an_invalid_action(player, monkeypatch):
    monkeypatch.setattr("environments.workspaces.Snapshots", functools.partial(Snapshots, max_files=3))
    before = player.state.snapshot
    for number in range(3):
        outcome = player.play("Write File", file_name=f"new{number}", content="x")
    assert outcome.kind is OutcomeKind.INVALID_ACTION
    assert player.state.snapshot != before


def test_a_script_too_large_to_keep_is_refused_when_it_is_written(player):
    (player.environment.task("guess@0").public / "big.csv").write_text("x\n" * 200_000)
    before = player.state.snapshot
    outcome = player.play("Copy File", source="data/big.csv", destination="train.py")
    assert outcome.kind is OutcomeKind.INVALID_ACTION
    assert player.state.snapshot == before
    outcome = player.edit("guess = 3.0\nopen('train.py', 'a').write('#' * 300_000)")
    assert outcome.kind is OutcomeKind.SCRIPT_ERROR
    assert len(outcome.script) < 1000


def test_a_job_whose_text_is_anything_at_all_is_answered(player):
    for text in (
        "\0",
        "Action: \0\nAction Input: \0",
        json.dumps({"action": "x"}),
        "Action: List Files\nAction Input: null",
        "Action: \ud800\nAction Input: {}",
        'Action: List Files\nAction Input: {"dir_path": "\ud800"}',
        'Action: List Files\nAction Input: {"dir_path": "\\ud800"}',
    ):
        job = Job(run="abuse", policy_version=0, state=player.state, sample=0, action=text)
        outcome = player.environment.take(job)
        assert outcome.kind is OutcomeKind.INVALID_ACTION
        later = dataclasses.replace(job, state=outcome.next_state(job))
        assert Job.from_dict(json.loads(json.dumps(later.to_dict(), ensure_ascii=False).encode())) == later
        assert later.id != job.id


# -- any actions, one after the other --

PATHS = ["train.py", "./train.py", "helper.py", "helper", "helper/__init__.py", "data", "data/train.csv", "backup", "."]
PATHS += [
    "backup/train.py_0001",
    "backup/train.py_9999",
    "train.py/x",
    "d/" * 31 + "x",
    "d/" * 32 + "x",
    "d/" * 33 + "x",
]
PATHS += [
    "x" * 200,
    "\u00e9" * 100,
    "..",
    "__pycache__/x",
    "submission.csv",
    ".unpack-x",
    "new.py",
    "a b",
    "-c",
    "*",
    "~",
]
PATHS += ["\ud800", "link", "link/train.py", "fifo"]
TEXT = st.text(max_size=30) | st.sampled_from(["", "# %% model\r\nguess = 1\r\n", "\ufeff# %% a", "x" * 300_000])
PATCH = "<<<<<<< SEARCH\nguess = 1.0\n=======\n{}\n>>>>>>> REPLACE"


@st.composite
def replies(draw):
    spec = draw(st.sampled_from(list(ACTIONS.values())))
    kinds = {
        Kind.NAME: st.sampled_from(PATHS) | st.text(max_size=8),
        Kind.TEXT: TEXT,
        Kind.LINE: st.integers(-1, 20) | st.just(10**8),
    }
    arguments = {argument.name: draw(kinds[argument.kind]) for argument in spec.arguments}
    if "cell" in arguments:
        arguments["cell"] = draw(st.sampled_from(["model", "submit", "a", ""]))
    block = None if spec.block is None else draw(TEXT | TEXT.map(PATCH.format))
    reply = Action(spec.name, arguments, block).render()
    place = draw(st.integers(0, len(reply)))
    return draw(st.sampled_from([reply, reply, reply, reply[:place] + draw(st.text(max_size=3)) + reply[place:]]))


class QuickSandbox(fakes.FakeSandbox):
    """Runs nothing; leaves what a script might have left."""

    def run(self, workspace, script, limits, data=None, seed=0, gpus=0):
        (workspace / "submission.csv").write_text("2.0")
        if not os.path.lexists(workspace / "link"):
            (workspace / "link").symlink_to("train.py")
        return Execution(Ending.EXITED, 0, "done", "", 0.1, 0.1)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(replies(), min_size=1, max_size=6))
def test_any_sequence_of_actions_ends_in_outcomes_of_the_policy(tmp_path_factory, texts):
    with fakes.playing(QuickSandbox(), tmp_path_factory.mktemp("fuzz")) as player:
        for text in texts:
            job = Job(run="abuse", policy_version=0, state=player.state, sample=0, action=text)
            outcome = player.environment.take(job)
            assert outcome.kind is not OutcomeKind.INFRASTRUCTURE_ERROR, outcome.reason
            assert str(player.environment._workspaces.scratch) not in outcome.observation
            player.state = outcome.next_state(job)
            json.dumps(player.state.to_dict(), ensure_ascii=False).encode()
