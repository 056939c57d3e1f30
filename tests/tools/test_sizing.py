"""Sizes against figures worked out by hand."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "sizing.py"))
RUN = {
    "actions": 256, "execution_seconds": 200.0, "device_seconds": 400.0, "iterations": 40,
    "slots": 0, "slots_a_worker": 8, "slice_price": 20.0, "worker_price": 0.5,
}  # fmt: skip


def test_as_many_slots_as_keep_up_with_the_devices():
    run = TOOL["size"](**RUN, overlap=True)
    assert run.slots == 128  # 256 * 200 / 400
    assert run.iteration_seconds == 400.0  # two rounds of 200 s
    assert run.hours == pytest.approx(40 * 400 / 3600)
    assert run.cost == pytest.approx(run.hours * (20 + 16 * 0.5))


def test_what_does_not_overlap_adds_up_and_few_slots_are_waited_for():
    assert TOOL["size"](**RUN, overlap=False).iteration_seconds == 800.0
    assert TOOL["size"](**RUN | {"slots": 32}, overlap=True).iteration_seconds == 8 * 200.0


def test_an_update_is_two_scorings_and_four_passes_an_epoch():
    assert TOOL["update_seconds"](1e9, 10, 100, 2, 1e15, 0.5) == pytest.approx((4 + 16) * 1e9 * 1000 / 5e14)


def test_every_slice_has_its_own_price_and_sampling_time(monkeypatch, capsys):
    def rows(*arguments):
        monkeypatch.setattr(sys, "argv", ["sizing.py", "--execution_seconds=200", *arguments])
        TOOL["main"]()
        return [line.split(" | ") for line in capsys.readouterr().out.splitlines()[4:]]

    # The update of the paper's run on 8 devices of 918e12 at 0.4: 12 * 7.6e9 * 256 * 15,000 FLOPs in 119 s.
    two = ["--slice", "v6e-8", "v6e-16", "--sampling_seconds", "281", "v6e-16=140", "--slice_price", "v6e-8=20"]
    first, second = rows(*two, "--worker_price=0.5")
    assert first == ["| v6e-8", "20", "400", "128", "16", "400", "4.4", "125 |"]  # (20 + 16 * 0.5) * 40 * 400.2 / 3600
    assert second[2:4] == ["200", "256"]
    assert second[-1] == " |"
    assert len(rows("--sampling_seconds", "120")) == 9
    with pytest.raises(SystemExit, match="9 slices are listed, name each, for example v5e-8=21"):
        rows("--sampling_seconds", "120", "--slice_price", "21")
    with pytest.raises(SystemExit, match="--sampling_seconds is missing for v6e-16"):
        rows("--slice", "v6e-8", "v6e-16", "--sampling_seconds", "v6e-8=120")


def test_the_page_has_the_table_that_its_command_makes(monkeypatch, capsys):
    page = (ROOT / "docs" / "sizing.md").read_text()
    command = re.search(r"```\n(python tools/sizing.py [^`]*--prices_of=\"SkyPilot[^`]*)```", page)[1]
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace("\\\n", " "))[1:])
    TOOL["main"]()
    table = capsys.readouterr().out.split("\n\n")[1]
    assert len(table.splitlines()) == 11
    assert table in page
