"""`doctor` says what a host lacks, and the command that mends it."""

import json
import types

import pytest

from environments.interfaces import command_line, doctor
from environments.interfaces.doctor import GAP, GOOD, OPTIONAL


def states(findings):
    return {finding.name: finding.state for finding in findings}


def test_a_host_with_one_sandbox_is_ready_and_all_is_told_as_json_too(monkeypatch, capfd):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent")
    assert command_line.main(["doctor", "--json"]) == 0
    told = {each["name"]: each for each in json.loads(capfd.readouterr().out)}
    assert told["sandbox bubblewrap"]["state"] == GOOD and "filesystem" in told["sandbox bubblewrap"]["found"]
    assert told["sandbox docker"]["state"] == OPTIONAL and told["sandbox docker"]["remedy"]


def test_a_host_without_a_sandbox_gets_the_command_of_its_package_manager(monkeypatch, capsys):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/dnf" if name == "dnf" else None)
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    found = {finding.name: finding for finding in doctor._sandboxes()}
    assert {finding.state for finding in found.values()} == {GAP}
    assert found["sandbox bubblewrap"].remedy == "sudo dnf install bubblewrap"
    monkeypatch.setattr(doctor, "examine", lambda: list(found.values()))
    assert command_line.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "-> sudo dnf install bubblewrap" in shown and "2 to mend" in shown


@pytest.mark.parametrize(
    ("jax", "flax", "state"),
    [("0.10.2", "0.12.8", GOOD), ("0.11.1", "0.12.8", GAP), ("0.11.1", "0.12.9", GOOD), (None, None, OPTIONAL)],
)
def test_a_pair_of_jax_and_flax_that_cannot_work_is_named(monkeypatch, jax, flax, state):
    monkeypatch.setattr(doctor, "_version", {"jax": jax, "flax": flax}.get)
    (found,) = doctor._jax()
    assert found.state == state and (state == GOOD) == (not found.remedy)


def test_another_system_is_told_what_works_there(monkeypatch):
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    findings = doctor.examine()
    assert states(findings)["system"] == GAP and "work here" in findings[0].found
    assert "control groups" not in states(findings)


def test_little_memory_is_a_warning_and_a_full_disk_a_gap(monkeypatch):
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: types.SimpleNamespace(total=2e9))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=1e8))
    assert states(doctor._room()) == {"cores and memory": OPTIONAL, "disk here": GAP, "disk of sandbox roots": GAP}
