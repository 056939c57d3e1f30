"""Preparing a task: complete or not there, reused, measured on both halves, its labels kept from everyone else."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path

import numpy as np
import pytest

from environments import tasks
from environments.protocol import Limits, Outcome, OutcomeKind
from environments.rewards import compute
from environments.sandbox.base import Ending, Execution
from environments.tasks import NoHeadroomError, TaskError, open_task, prepare_task
from environments.tasks.generated.dataset import Dataset
from environments.tasks.generated.recipe import Recipe, embedded
from environments.tasks.generated.scripts import Script


def recipe(name: str = "toy") -> Recipe:
    """Targets near 100: a constant of 100 does well, one of 0 badly."""

    def data(rng: np.random.Generator) -> Dataset:
        return Dataset(rng.normal(size=(60, 3)), rng.normal(100, 1, size=60), train_rows=20)

    return embedded(name, "tabular", "train", "mae", "Guess.", "Made up.", data, Script("Start()"), Script("Best()"))


class WritingSandbox:
    """Runs nothing, and hands in a constant for each of the two scripts."""

    name, environment_digest, guarantees = "writing", "environment-1", frozenset()

    def __init__(self, start: float = 0.0, reference: float = 100.0, exit_code: int = 0, by_seed: float = 0.0) -> None:
        self.values, self.exit_code, self.by_seed = {"Start": start, "Best": reference}, exit_code, by_seed
        self.runs = 0
        self.seeds: list[int] = []
        self.seen: list[bytes] = []

    def place_of(self, seed: int) -> int:
        """-2 of the first seed, 2 of the fifth."""
        self.seeds += [] if seed in self.seeds else [seed]
        return self.seeds.index(seed) - 2

    def run(
        self, workspace: Path, script: str, limits: Limits, data: Path | None = None, seed: int = 0, gpus: int = 0
    ) -> Execution:
        self.runs += 1
        text = (workspace / script).read_text()
        value = next(value for name, value in self.values.items() if name in text) + self.by_seed * self.place_of(seed)
        rows = len((data / "test.csv").read_text().splitlines()) - 1
        lines = ["id,value", *(f"{row},{value}" for row in range(rows))]
        (workspace / "submission.csv").write_text("\n".join(lines) + "\n")
        self.seen += [path.read_bytes() for path in (*workspace.rglob("*"), *data.rglob("*")) if path.is_file()]
        return Execution(Ending.EXITED, self.exit_code, "", "went wrong", 0.0, 0.0)

    def close(self) -> None: ...


def test_both_scripts_are_measured_on_both_halves(tmp_path):
    task = prepare_task(recipe(), tmp_path, 0, WritingSandbox())
    assert task.key.startswith("toy@") and task.folder == tmp_path / task.key
    assert task.scale.m_init == pytest.approx(100, abs=1) and task.scale.m_best == pytest.approx(0.8, abs=0.4)
    assert task.scale.m_init != task.report_init
    assert not task.scale.higher_is_better
    constant = b"id,value\n" + b"".join(b"%d,100\n" % row for row in range(40))
    assert task.grade(constant) == pytest.approx(task.scale.m_best)
    assert task.grade_report(constant) == pytest.approx(task.report_scale.m_best)


def test_a_starting_script_that_scores_by_its_seed_starts_at_the_mean_and_its_noise_is_known(tmp_path):
    sandbox = WritingSandbox(by_seed=1.0)
    noisy = prepare_task(recipe(), tmp_path, 0, sandbox)
    steady = prepare_task(recipe("steady"), tmp_path, 0, WritingSandbox())
    assert sandbox.runs == 6  # five seeds, and the reference
    assert noisy.scale.m_init == pytest.approx(steady.scale.m_init, abs=0.5)
    # The scores are m - 2 ... m + 2: their standard deviation is the root of 2.5.
    assert noisy.scale.noise == pytest.approx(2 * (2 * 2.5) ** 0.5)
    assert steady.scale.noise == 0.0
    assert open_task(tmp_path, noisy.key).scale == noisy.scale
    # A step that changes nothing gains nothing, whatever the seed of the run.
    outcome = Outcome(OutcomeKind.SCORED, "", "", "", noisy.scale.m_init, None, noisy.scale)
    for score in (noisy.scale.m_init - 2, noisy.scale.m_init + 2):
        assert compute("improvement", dataclasses.replace(outcome, metric_after=score)) == 0.1


def test_a_gap_within_the_noise_is_no_headroom(tmp_path):
    with pytest.raises(NoHeadroomError, match="by its seed, up to"):
        prepare_task(recipe(), tmp_path, 0, WritingSandbox(start=97.0, by_seed=2.0))


def test_a_prepared_task_is_reused_and_opens_as_it_was(tmp_path):
    sandbox = WritingSandbox()
    first = prepare_task(recipe(), tmp_path, 0, sandbox)
    second = prepare_task(recipe(), tmp_path, 0, sandbox)
    assert sandbox.runs == 3  # the starting script with two seeds, which make no difference, and the reference
    assert first == second == open_task(tmp_path, first.key)
    assert [path.name for path in tmp_path.iterdir()] == [first.key]


def test_the_key_follows_from_data_spec_and_environment(tmp_path):
    sandbox, other = WritingSandbox(), WritingSandbox()
    other.environment_digest = "environment-2"
    keys = {
        prepare_task(recipe(), tmp_path, 0, sandbox).key,
        prepare_task(recipe(), tmp_path, 1, sandbox).key,
        prepare_task(recipe("other"), tmp_path, 0, sandbox).key,
        prepare_task(recipe(), tmp_path, 0, other).key,
    }
    assert len(keys) == 4


def test_hidden_labels_are_private_and_in_nothing_the_sandbox_is_given(tmp_path):
    sandbox = WritingSandbox()
    task = prepare_task(recipe(), tmp_path, 0, sandbox)
    private = task.folder / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    with np.load(private / "answers.npz") as archive:
        labels = archive["truth"]
    # A hidden label that equals a public one when written tells nothing.
    known = (task.public / "target.csv").read_text().split()
    secrets = {text for text in (f"{label:.6g}" for label in labels) if len(text) > 5} - set(known)
    given = b"".join(sandbox.seen).decode()
    assert len(secrets) > 30 and not any(secret in given for secret in secrets)
    assert not any(path.is_relative_to(private) for path in (task.env, task.public))


def test_the_halves_share_the_hidden_rows_evenly(tmp_path):
    task = prepare_task(recipe(), tmp_path, 0, WritingSandbox())
    with np.load(task.folder / "private" / "answers.npz") as archive:
        assert archive["report"].sum() == 20 and len(archive["report"]) == 40


@pytest.mark.parametrize(
    ("sandbox", "message"),
    [
        (WritingSandbox(start=100.0, reference=0.0), "no headroom"),
        (WritingSandbox(start=50.0, reference=50.0), "no headroom"),
        (WritingSandbox(exit_code=1), "starting script ended.*went wrong"),
        (WritingSandbox(start=float("nan")), "cannot be graded"),
    ],
)
def test_a_task_whose_own_scripts_fail_is_not_prepared(tmp_path, sandbox, message):
    with pytest.raises(TaskError, match=message):
        prepare_task(recipe(), tmp_path, 0, sandbox)
    assert list(tmp_path.iterdir()) == []


def test_a_micro_task_without_headroom_is_drawn_again(tmp_path, monkeypatch):
    draws = []

    def refuse(task, root, seed, sandbox):
        draws.append(task.draw)
        if task.draw < 2:
            raise NoHeadroomError("none")
        return "prepared"

    monkeypatch.setattr(tasks, "prepare_task", refuse)
    assert tasks.prepare("micro-rings-0", tmp_path, 0, WritingSandbox()) == "prepared"
    assert draws == [0, 1, 2]


def test_a_missing_or_broken_folder_is_a_task_error(tmp_path):
    task = prepare_task(recipe(), tmp_path, 0, WritingSandbox())
    with pytest.raises(TaskError, match="no prepared task"):
        open_task(tmp_path, "toy@0000")
    with pytest.raises(TaskError, match="no prepared task"):
        open_task(tmp_path / "elsewhere", f"../{task.key}")
    record = json.loads((task.folder / "task.json").read_text())
    del record["scale"]
    (task.folder / "task.json").write_text(json.dumps(record))
    with pytest.raises(TaskError, match="broken"):
        open_task(tmp_path, task.key)
