"""The table of abuse cases in docs/security.md: complete, each with tests that exist, in both sandboxes."""

import ast
import re
from pathlib import Path

import pytest

from environments.sandbox.self_check import CHECKS

TESTS = Path(__file__).parent
FILES = {
    "left": TESTS / "sandbox/test_left_behind.py",
    "parts": TESTS / "sandbox/test_parts.py",
    "steps": TESTS / "sandbox/test_abuse_steps.py",
    "files": TESTS / "sandbox/test_abuse_files.py",
    "transfer": TESTS / "guest/test_transfer.py",
    "actions": TESTS / "actions/test_abuse_actions.py",
    "observation": TESTS / "actions/test_observation.py",
    "worker": TESTS / "worker/test_worker.py",
    "bucket": TESTS / "files/test_faulty_bucket.py",
    "leases": TESTS / "queue/test_leases.py",
    "sqlite": TESTS / "queue/test_sqlite.py",
    "postgres": TESTS / "queue/test_postgres.py",
    "grading": TESTS / "tasks/grading/test_grading.py",
    "isolated": TESTS / "tasks/grading/test_isolated.py",
    "folder": TESTS / "tasks/folders/test_folder.py",
    "catalogue": TESTS / "tasks/test_catalogue.py",
    "terminal": TESTS / "interfaces/test_terminal.py",
    "hostile": TESTS.parent / "mlagent_jax/serving/test_hostile.py",
    "soak": TESTS.parent / "mlagent_jax/serving/test_soak.py",
    "cuts": TESTS.parent / "mlagent_jax/sampling/test_cuts.py",
}
IN_BOTH = {"check", "steps", "files", "left"}
"""Their tests take the fixture `sandbox` of sandbox/conftest.py, which has both."""


@pytest.fixture(scope="module")
def cases():
    """Tests by the number of their case, as the page names them."""
    page = (TESTS.parents[1] / "docs/security.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\| (`[^|]*`) \|$", page, flags=re.MULTILINE)
    return [(int(number), re.findall(r"`(\w+)::(\w+)`", tests)) for number, tests in rows]


def functions(path):
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_case_is_there_once_with_a_test_in_both_sandboxes(cases):
    assert [number for number, _ in cases] == list(range(1, len(cases) + 1))
    for number, tests in cases:
        assert IN_BOTH & {file for file, _ in tests}, f"case {number}"


def test_every_named_test_exists():
    known = {file: functions(path) for file, path in FILES.items()} | {"check": set(CHECKS)}
    page = (TESTS.parents[1] / "docs/security.md").read_text()
    missing = [f"{file}::{name}" for file, name in re.findall(r"`(\w+)::(\w+)`", page) if name not in known[file]]
    assert missing == []


def test_every_test_that_has_the_number_of_a_case_is_in_its_row(cases):
    named = {name: set() for _, tests in cases for _, name in tests}
    for number, tests in cases:
        for _, name in tests:
            named[name].add(number)
    for file in ("steps", "files", "actions"):
        for name in functions(FILES[file]):
            if match := re.match(r"test_((?:\d+_)+)", name):
                assert named.get(name) == set(map(int, match[1].strip("_").split("_"))), name
