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


def test_every_slice_has_its_own_price_and_sampling_time(monkeypatch, capsys):
    def rows(*arguments):
        monkeypatch.setattr(sys, "argv", ["sizing.py", "--execution_seconds=200", *arguments])
        TOOL["main"]()
        return [line.split(" | ") for line in capsys.readouterr().out.splitlines()[4:]]

    # The update of the paper's run on 8 devices of 918e12: 12 FLOPs a weight of the layers and token, the vocabulary's
    # for actions alone, and six forward passes' attention; a state's prompt counts once. Twice as fast on 16 devices.
    weights = 28 * (2 * 3584 * 128 * (28 + 4) + 3 * 3584 * 18_944)
    of_weights = 12 * 64 * (weights * (14_000 + 4 * 1000) + 152_064 * 3584 * 4 * 1000)
    attended = 64 * (14_000**2 / 2 + 4 * (1000 * 14_000 + 1000**2 / 2))
    update = (of_weights + 6 * 4 * 28 * 3584 * attended) / (8 * 918e12 * 0.4)
    two = ["--slice", "v6e-8", "v6e-16", "--sampling_seconds", "281", "v6e-16=140", "--slice_price", "v6e-8=20"]
    first, second = rows(*two, "--worker_price=0.5")
    seconds = 281 + update
    assert first[1:4] == ["20", "281", f"{seconds:.0f}"]
    assert first[-1] == f"{(20 + 32 * 0.5) * 40 * seconds / 3600:.0f} |"
    assert second[2:4] == ["140", f"{140 + update / 2:.0f}"]
    assert second[-1] == " |"
    predicted, halved = rows("--slice", "v6e-8"), rows("--slice", "v6e-8", "--sampling_share=0.35")
    assert float(halved[0][2]) == pytest.approx(2 * float(predicted[0][2]), abs=1.5)
    assert len(rows("--sampling_seconds", "120")) == 9
    with pytest.raises(SystemExit, match="9 slices are listed, name each, for example v5e-8=21"):
        rows("--sampling_seconds", "120", "--slice_price", "21")
    with pytest.raises(SystemExit, match=r"No such file.*nowhere\.json"):
        rows("--model=nowhere.json")


def test_the_page_has_the_table_that_its_command_makes(monkeypatch, capsys):
    page = (ROOT / "docs" / "sizing.md").read_text()
    command = re.search(r"```\n(python tools/sizing.py [^`]*--prices_of=\"SkyPilot[^`]*)```", page)[1]
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace("\\\n", " "))[1:])
    TOOL["main"]()
    table = capsys.readouterr().out.split("\n\n")[1]
    assert len(table.splitlines()) == 11
    assert table in page
