"""What a machine lacks leaves a person's test out, and fails CI's."""

import re
from pathlib import Path

import needs
import pytest

TESTS = Path(__file__).parent
OPTIONAL = 'pytest.importorskip("tensorflow_datasets")'
"""Of an extra of its own, which tests/run.sh does not install."""


@pytest.mark.parametrize(
    "lacks",
    [
        lambda: needs.need(False, "no engine"),
        lambda: needs.package("no_such_package"),
        lambda: needs.sandbox("docker"),
    ],
)
def test_what_is_missing_is_skipped_by_a_person_and_fails_in_ci(lacks, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    for name, ending in (("", pytest.skip.Exception), ("true", pytest.fail.Exception)):
        monkeypatch.setenv("CI", name)
        with pytest.raises(ending, match=r"no engine|no_such_package|Docker"):
            lacks()


def test_no_test_leaves_itself_out_in_another_way():
    found = [
        f"{path.relative_to(TESTS)}: {line.strip()}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.name not in ("needs.py", "test_needs.py")
        for line in path.read_text().replace(OPTIONAL, "").splitlines()
        if re.search(r"pytest\.(skip|importorskip)|skipif", line)
    ]
    assert found == []
