"""Every check of the shipped self-check holds in each sandbox, and the command tells what it found."""

import json
import types

import pytest

from environments.guest import system_calls
from environments.interfaces.command_line import main
from environments.sandbox import SANDBOXES, self_check
from environments.sandbox.self_check import CHECKS, Bench, CheckError, run_checks
from environments.sandbox.self_check.bench import Check


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_holds(sandbox, tmp_path, name):
    check = CHECKS[name]
    if check.guarantee in sandbox.guarantees | {"conformance"}:
        check.run(Bench(sandbox, tmp_path))


def test_every_check_has_a_title():
    assert [check.name for check in CHECKS.values() if not check.title.endswith(".")] == []


class Empty:
    """A sandbox of a package, which claims one guarantee and runs nothing."""

    name, gpus = "empty", 0
    guarantees = frozenset({"network"})

    def close(self):
        pass


@pytest.fixture
def three_checks(monkeypatch):
    """One that holds, one that does not, one of a guarantee that is not given."""

    def holds(bench):
        """It holds."""

    def fails(bench):
        """It does not."""
        raise CheckError("two interfaces")

    def is_not_tried(bench):
        """It is not tried."""
        raise AssertionError

    checks = [Check("conformance", holds), Check("network", fails), Check("memory", is_not_tried)]
    monkeypatch.setattr(self_check, "CHECKS", {check.name: check for check in checks})


def test_results_say_what_holds_what_fails_and_what_is_not_given(three_checks):
    results = list(run_checks(Empty()))
    assert [result.status for result in results] == ["ok", "FAIL", "not given"]
    assert results[1].seen == "two interfaces"


def test_a_sandbox_of_an_installed_package_is_checked_by_name(three_checks, monkeypatch, capfd):
    point = types.SimpleNamespace(name="empty", value="package:Empty", load=lambda: Empty)
    monkeypatch.setattr(SANDBOXES, "_installed", lambda: {"empty": point})
    monkeypatch.setattr(SANDBOXES, "_functions", dict(SANDBOXES._functions))
    assert main(["self-check", "--sandbox", "empty"]) == 1
    shown = capfd.readouterr().out
    assert "FAIL" in shown and "two interfaces" in shown and "not given here" in shown
    assert main(["self-check", "--sandbox", "empty", "--json"]) == 1
    assert [json.loads(line)["status"] for line in capfd.readouterr().out.splitlines()] == ["ok", "FAIL", "not given"]


def test_an_unknown_processor_costs_the_guarantees_that_the_filter_gives(monkeypatch):
    monkeypatch.setattr(system_calls.platform, "machine", lambda: "riscv64")
    assert not system_calls.install()
    for name in ("privileges", "neighbours"):
        assert name not in _claims_of_bubblewrap()


def _claims_of_bubblewrap():
    from environments.sandbox.bubblewrap import BubblewrapSandbox

    sandbox = BubblewrapSandbox.__new__(BubblewrapSandbox)
    sandbox._cgroups, sandbox._shared = object(), system_calls.known()
    return sandbox.claims
