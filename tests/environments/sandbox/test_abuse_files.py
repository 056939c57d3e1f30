"""What a script leaves, or does to its own container, ends in an outcome of the policy, never in a failure of ours.

Each case takes real steps in each sandbox, and the step after it is an honest one, from the state that was left.
"""

import dataclasses

import fakes
import pytest

from environments.guest import tree
from environments.protocol import OutcomeKind

LIMITS = dataclasses.replace(fakes.Limits(), cpu_seconds=20.0, wall_seconds=60.0, memory_mb=512, disk_mb=16)
SCORED, SCRIPT_ERROR, INVALID = OutcomeKind.SCORED, OutcomeKind.SCRIPT_ERROR, OutcomeKind.INVALID_ACTION


@pytest.fixture(scope="module")
def one_player(sandbox, tmp_path_factory):
    with fakes.playing(sandbox, tmp_path_factory.mktemp("files"), LIMITS) as player:
        yield player


@pytest.fixture
def player(one_player):
    one_player.restart()
    return one_player


@pytest.mark.parametrize(
    ("leave", "kind"),
    [
        ("for i in range(1500): os.mkfifo(f'{i}' + 'f' * 200)", SCORED),
        ("for i in range(3000): os.symlink('/x', f'l{i}')", SCORED),
        ("open(b'\\xff\\xfe', 'w').close()", SCORED),
        ("os.symlink(b'\\xff', 'link')", SCORED),
        ("for _ in range(16): os.mkdir('d' * 255); os.chdir('d' * 255)", SCRIPT_ERROR),
        ("for _ in range(60): os.mkdir('d'); os.chdir('d')", SCRIPT_ERROR),
        (f"for i in range({tree.MAX_FILES + 1}): open(f'x{{i}}', 'w').close()", SCRIPT_ERROR),
        ("os.mkdir('closed'); os.mkdir('closed/in'); os.chmod('closed', 0)", SCORED),
    ],
    ids=["FIFOs", "links", "name", "target", "long names", "deep", "many", "closed"],
)
def test_files_that_cannot_be_kept_are_the_policys_affair(player, leave, kind):
    submit = "helper.submit(guess)\nimport os\n" + leave
    outcome = player.edit(submit, cell="submit")
    assert outcome.kind is kind, outcome.reason
    assert player.edit("helper.submit(2.0)", cell="submit").kind is SCORED


def test_a_state_at_the_limits_can_be_acted_on(player):
    """As many files as are kept, each in a page of its own, and as deep as they may lie."""
    deep = "d/" * tree.MAX_DEPTH
    names = tree.MAX_FILES - tree.MAX_DEPTH - 10
    fill = f"import os\nguess = 2.0\nos.makedirs({deep!r})\nfor i in range({names}): open(f'x{{i}}', 'w').write('x')"
    assert player.edit(fill).kind is SCORED
    assert player.play("Copy File", source="train.py", destination=f"{deep}copy.py").kind is OutcomeKind.NO_EDIT
    beyond = player.play("Copy File", source="train.py", destination=f"{deep}d/copy.py")
    assert (beyond.kind, "folders deep" in beyond.reason) == (INVALID, True)
    assert player.edit("guess = 2.5").kind is SCORED


def test_a_submission_whose_folder_becomes_a_file_is_no_failure_of_ours(player, monkeypatch):
    task = player.environment.task(player.task)
    monkeypatch.setattr(task, "spec", dataclasses.replace(task.spec, submission="out/submission.csv"))
    hand_in = "import os\nos.path.isdir('out') or os.mkdir('out')\nopen('out/submission.csv', 'w').write('2.0')"
    assert player.edit(hand_in, cell="submit").kind is SCORED
    assert player.edit("import shutil\nshutil.rmtree('out')\nopen('out', 'w').close()", "submit").kind is SCRIPT_ERROR
    assert player.edit(f"import os\nos.unlink('out')\n{hand_in}", "submit").kind is SCORED


@pytest.mark.parametrize(
    "attack",
    [
        "[os.kill(1, number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)]",
        "resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))",
        "resource.prlimit(1, resource.RLIMIT_AS, (1 << 20, 1 << 20))",
        "resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))",
    ],
    ids=["signals", "descriptors", "memory", "time"],
)
def test_an_attack_on_the_first_process_ends_as_the_scripts_own(player, attack):
    submit = f"import os, resource, signal\nhelper.submit(2.0)\ntry: {attack}\nexcept OSError: pass"
    assert player.edit(submit, cell="submit").kind in (SCORED, SCRIPT_ERROR)
    assert player.edit("helper.submit(2.0)", cell="submit").kind is SCORED


def test_a_script_can_be_interrupted_as_any(player):
    outcome = player.edit(
        "import os, signal\ntry: os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt: guess = 2"
    )
    assert outcome.kind is SCORED


def test_38_nothing_stands_before_a_read_only_module(player):
    forged = "import builtins\ndef submit(guess): print('owned')\n"
    for name in (
        "helper/__init__.py",
        "helper.so",
        "helper.abi3.so",
        "helper/x/y.py",
        "__pycache__/helper.cpython-311.pyc",
    ):
        outcome = player.play("Write File", file_name=name, content=forged)
        assert outcome.kind is INVALID, name
    leave = f"import os\nguess = 2.0\nos.mkdir('lib')\nopen('lib/__init__.py', 'w').write({forged!r})"
    leave += "\nos.symlink('lib', 'helper')"
    assert player.edit(leave).kind is SCORED
    outcome = player.edit("guess = 2.5")
    assert (outcome.kind, outcome.metric_after) == (SCORED, 0.75)


def test_39_nothing_stands_before_an_installed_module_that_read_only_files_may_import(player):
    for name in ("sitecustomize", "csv", "numpy/__init__", "sklearn/__init__", "networkx/__init__"):
        assert player.play("Write File", file_name=f"{name}.py", content="print('owned')").kind is OutcomeKind.NO_EDIT
    player.play("Write File", file_name="evil.pth", content="import os; print('owned')")
    player.play("Write File", file_name="mine.py", content="print('my own')")
    outcome = player.edit("import csv, mine, networkx, numpy, sklearn\nguess = float(numpy.ones(1)[0]) + 1")
    assert (outcome.kind, outcome.metric_after) == (SCORED, 1.25)
    assert "my own" in outcome.observation and "owned" not in outcome.observation
