"""launch/sweep.py: which members a sweep has, that failures and interruptions stop nothing, and its table and plot."""

import csv
import json
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from launch import sweep
from mlagent_jax.runtime.errors import ConfigError

# In place of the trainer: writes a summary, and does as its clip says; leaves how many members were at work with it.
MEMBER = """
import json, os, pathlib, sys, time
workdir, clip, seed = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
at_work = workdir.parent / "at_work"
at_work.mkdir(exist_ok=True)
mine = at_work / workdir.name
mine.touch()
time.sleep(0.2)
with open(workdir.parent / "most", "a") as file:
    file.write(f"{len(list(at_work.iterdir()))}\\n")
with open(workdir / "starts", "a") as file:
    file.write("x")
mine.unlink()
if clip == 0.3:
    sys.exit(1)
if clip == 0.2 and (workdir / "starts").read_text() == "x":
    sys.exit(75)
(workdir / "report").mkdir(exist_ok=True)
(workdir / "report" / "summary.json").write_text(json.dumps({"figure": {"mean": clip + seed}}))
"""


def options(workdir, *more):
    fixed = ("--config=configs/smoke.py", f"--workdir={workdir}", "--objective=figure.mean", "--at_once=2")
    return sweep.parse([*fixed, *more])


def run(workdir, *more, clips="0.1,0.2,0.3"):
    given = options(workdir, f"--sweep=rl.value_clip={clips}", "--sweep=seed=0,1", *more)
    members = sweep.grid(sweep.parse_sweeps(given.sweep))
    made = sweep.Sweep(given, members)
    made.command = lambda i: [
        *(sys.executable, "-c", MEMBER, str(made.workdir(i))),
        *(members[i]["rl.value_clip"], members[i]["seed"]),
    ]
    made.run()
    return made


@pytest.fixture(autouse=True)
def signals_stay(monkeypatch):
    monkeypatch.setattr(sweep.signal, "signal", lambda *_: None)


@pytest.mark.slow
def test_a_failed_member_stops_nothing_and_the_same_command_goes_on(tmp_path):
    folder = tmp_path / "sweep"
    first = run(folder)
    assert first.states == ["done", "done", "done", "done", "failed", "failed"]
    starts = [len((folder / f"{i:03d}" / "starts").read_text()) for i in range(6)]
    assert starts == [1, 1, 2, 2, 1, 1]  # those that were pre-empted started again
    assert max(map(int, (folder / "most").read_text().split())) <= 2

    data = json.loads((folder / sweep.MEMBERS).read_text())
    data["states"][1] = "running"  # as after a power cut
    (folder / sweep.MEMBERS).write_text(json.dumps(data))
    second = run(folder, clips="0.1,0.2,0.3,0.4")
    assert second.states == ["done", "done", "done", "done", "failed", "failed", "done", "done"]
    starts = [len((folder / f"{i:03d}" / "starts").read_text()) for i in range(8)]
    assert starts == [1, 2, 2, 2, 1, 1, 1, 1]
    assert run(folder, "--retry", clips="0.1,0.2,0.3,0.4").states[4:6] == ["failed", "failed"]
    assert (folder / "004" / "starts").read_text() == "xx"

    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [row["member"] for row in rows] == ["007", "003", "001", "006", "002", "000", "004", "005"]
    assert rows[0] == {"member": "007", "state": "done", "rl.value_clip": "0.4", "seed": "1", "figure.mean": "1.4"}
    page = (folder / "sweep.html").read_text()
    picture = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    lines = [line for line in picture if line.tag == "polyline"]
    assert len(lines) == 6
    assert len(lines[0].attrib["points"].split()) == 3
    with pytest.raises(ConfigError, match="other members or settings"):
        run(folder, clips="0.2")

    # Nothing is left to run, and the table has another column.
    assert sweep.missing_objective(second) == ""
    again = run(folder, "--objective=figure.median", clips="0.1,0.2,0.3,0.4")
    assert "figure.median" in (folder / "sweep.csv").read_text()
    assert sweep.missing_objective(again).endswith("another --objective, such as figure.mean")


def test_members_are_beside_the_table_wherever_the_sweep_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = sweep.Sweep(options("runs/clip", "--sweep=rl.value_clip=0.1"), [{"rl.value_clip": "0.1"}])
    assert (made.folder, made.workdir(0)) == (tmp_path / "runs/clip", tmp_path / "runs/clip/000")
    assert f"--workdir={tmp_path}/runs/clip/000" in made.command(0)


def test_a_grid_has_every_combination():
    found = sweep.grid(sweep.parse_sweeps(["rl.value_clip=0.1,0.2", "config.seed=0,1"]))
    assert found == [
        {"rl.value_clip": "0.1", "seed": "0"},
        {"rl.value_clip": "0.1", "seed": "1"},
        {"rl.value_clip": "0.2", "seed": "0"},
        {"rl.value_clip": "0.2", "seed": "1"},
    ]


def test_draws_are_in_range_reproducible_and_can_be_added_to():
    fields = sweep.parse_sweeps(
        ["rl.learning_rate=log:1e-6..1e-3", "rl.epochs=1..4", "rl.value_clip=0.1..0.3", "rl.estimator=gae,grpo"]
    )
    found = sweep.draws(fields, 200, seed=0)
    assert found[:7] == sweep.draws(fields, 7, seed=0)
    rates = sorted(float(member["rl.learning_rate"]) for member in found)
    assert 1e-6 <= rates[0] < rates[-1] <= 1e-3
    assert 1e-5 < rates[100] < 1e-4  # the median of a logarithm that is uniform
    assert {member["rl.epochs"] for member in found} == {"1", "2", "3", "4"}
    assert all(0.1 <= float(member["rl.value_clip"]) <= 0.3 for member in found)
    assert {member["rl.estimator"] for member in found} == {"gae", "grpo"}


def test_a_file_names_members_and_mistakes_are_named(tmp_path):
    path = tmp_path / "members.jsonl"
    path.write_text('{"rl.value_clip": 0.1, "stages": "sft,rl"}\n\n{"seed": 3}\n')
    assert sweep.from_file(path) == [{"rl.value_clip": "0.1", "stages": "sft,rl"}, {"seed": "3"}]
    path.write_text('{"rl.value_clip": 0.1}\n[1]\n')
    with pytest.raises(ConfigError, match=r"members.jsonl:2 is \[1\]"):
        sweep.from_file(path)
    with pytest.raises(ConfigError, match=r"did you mean config\.rl\.value_clip\?"):
        sweep.parse_sweeps(["rl.value_clipp=1"])
    with pytest.raises(ConfigError, match="a range is drawn from, with --random N"):
        sweep.grid({"rl.value_clip": "0.1..0.2"})
    with pytest.raises(ConfigError, match="the lower one first"):
        sweep.draws({"rl.value_clip": "0.3..0.1"}, 1, 0)


def test_every_members_settings_are_checked_before_anything_is_written(tmp_path, capsys):
    folder = tmp_path / "s"
    common = ["--config=configs/smoke.py", f"--workdir={folder}", "--sweep=seed=0,1"]
    assert sweep.main([*common, "--sweep=rl.value_clip=0.1,0.2,-1"]) == 1
    message = "error: member 002 (seed=0 rl.value_clip=-1): config.rl.value_clip is -1.0; it is 0 or above\n"
    assert message in capsys.readouterr().err
    path = tmp_path / "members.jsonl"
    path.write_text('{"rl.value_clip": 0.1}\n{"rl.samples": "many"}\n')
    assert sweep.main([*common[:2], f"--file={path}"]) == 1
    assert "error: member 001 (rl.samples=many): --config.rl.samples=many: invalid" in capsys.readouterr().err
    assert sweep.main([*common, "--config.rl.estimator=vtrace"]) == 1
    assert "member 000 (seed=0): config.rl.estimator: advantage estimator is 'vtrace'" in capsys.readouterr().err
    assert sweep.main([*common, "--config.seed=3"]) == 1
    assert "config.seed is given for all members and differs between them" in capsys.readouterr().err
    # Impossible together only.
    assert sweep.main([*common, "--sweep=prompt.profile=full,compact", "--config.prompt.editor=policy"]) == 1
    assert "member 001 (seed=0 prompt.profile=compact): config.prompt.editor is 'policy'" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.slow
def test_a_dry_run_prints_what_each_backend_would_start(tmp_path, capsys):
    common = ["--config=configs/smoke.py", f"--workdir={tmp_path / 's'}", "--sweep=seed=0,1", "--dry_run"]
    assert sweep.main([*common, "--backend=gke", "--launch=--image=i", "--name=lr", "--config.rl.value_clip=0.1"]) == 0
    printed = capsys.readouterr().out
    summary = tmp_path / "s" / "001" / "report" / "summary.json"
    assert f"launch/gke.sh --name=lr-001 --wait --summary={summary} --image=i --config=configs/smoke.py" in printed
    assert printed.count("--config.seed=") == 2
    assert not (tmp_path / "s").exists()
