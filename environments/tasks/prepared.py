"""Prepared tasks: the folder that a recipe becomes for a seed, for workers and reports (its layout is in `task`).

    build into a temporary folder -> digest -> run starting script and reference -> grade -> task.json -> rename

The starting script runs with several seeds. `m_init` is its mean score, and `Scale.noise` the score's variation with
the seed, so the first step of a run is graded alike whatever the run's seed.

The rename is atomic and comes last: a folder that exists is complete, and preparing it again reuses it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from environments.protocol import Scale, digest
from environments.sandbox.base import Sandbox
from environments.tasks.adapters import mlebench
from environments.tasks.graders import Grader, load_grader
from environments.tasks.grading.halves import HALVES
from environments.tasks.grading.isolated import CONTROL, author_error
from environments.tasks.running import run_script
from environments.tasks.task import (
    M_BEST,
    M_INIT,
    GraderError,
    InvalidSubmissionError,
    NoHeadroomError,
    Task,
    TaskError,
    TaskSpec,
)

_DIGEST_LETTERS = 16
_SEEDS = 5
"""Number of runs of a starting script whose score is random, each with its own seed, 0 first."""
_LEAST_AGREEMENT = 0.25
"""Minimum ratio of the reference's gains on the two halves; below it the gap is mostly chance."""


@dataclasses.dataclass(frozen=True)
class FolderTask:
    """A prepared folder (`environments.tasks.task.PreparedTask`). Labels are read at the first grading and kept."""

    key: str
    spec: TaskSpec
    scale: Scale
    report_scale: Scale
    """m_init and m_best on the report half."""
    folder: Path

    @property
    def env(self) -> Path:
        return self.folder / "env"

    @property
    def public(self) -> Path:
        return self.folder / "public"

    @property
    def report_init(self) -> float:
        """Score of the starting script on the report half."""
        return self.report_scale.m_init

    @property
    def script(self) -> str:
        """Text of the starting script."""
        return (self.env / self.spec.entry).read_text(encoding="utf-8")

    def grade(self, submission: bytes) -> float:
        """Return the metric on the reward half.

        Raises:
          InvalidSubmissionError: it is not a complete table of valid predictions.
          GraderError: the grader fails, and the submission is not the cause.
        """
        return self.grader.grade(submission, "reward")

    def grade_report(self, submission: bytes) -> float:
        """Return the metric on the report half; called only for reports.

        Raises:
          InvalidSubmissionError: it is not a complete table of valid predictions.
        """
        return self.grader.grade(submission, "report")

    def resampled(self, submission: bytes, draws: int, seed: int) -> list[list[float | None]] | None:
        """Return the score of a submission on `draws` bootstrap samples of the reward half's rows and on the rows left
        out of each, as pairs; None where no score can be computed. The samples follow from the seed alone.

        Returns None if the task's grader scores whole tables only, as those of benchmarks do.

        Raises:
          InvalidSubmissionError, GraderError: as for `grade`.
        """
        return self.grader.resampled(submission, draws, seed)

    @property
    def start_submission(self) -> bytes | None:
        """Submission of the starting script; None if the task states its score instead."""
        path = self.folder / CONTROL
        stated = (self.folder / "private" / M_INIT).exists()
        return path.read_bytes() if path.is_file() and not stated else None

    @property
    def has_medals(self) -> bool:
        """Whether the task is from a benchmark with a leaderboard, so that `official` is available."""
        return (self.folder / "private" / mlebench.MARK).exists()

    def official(self, submission: bytes) -> dict[str, Any]:
        """Return the report of the task's benchmark on a submission (see `mlebench`), if `has_medals`; called only for
        reports.

        Raises:
          InvalidSubmissionError: it is not a complete table of valid predictions.
        """
        return self.grader.official(submission)

    def close(self) -> None:
        """End the grader's processes, if any; gradings in flight fail with a GraderError."""
        if "grader" in vars(self):
            self.grader.close()

    @functools.cached_property
    def grader(self) -> Grader:
        """Grader with the hidden labels, loaded on first use."""
        return load_grader(self.folder / "private")


def open_task(root: Path, key: str) -> FolderTask:
    """Open the prepared task `key` (`name@digest`) under `root`.

    Raises:
      TaskError: it is missing, or its task.json is broken.
    """
    folder = Path(root) / key
    if "/" in key or "\\" in key or not (folder / "task.json").is_file():
        raise TaskError(f"no prepared task {key!r} in {root}: prepare it, or copy its folder there")
    try:
        record: dict[str, Any] = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        return FolderTask(
            key=record["key"],
            spec=TaskSpec.from_dict(record["spec"]),
            scale=Scale.from_dict(record["scale"]),
            report_scale=Scale.from_dict(record["report_scale"]),
            folder=folder,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TaskError(
            f"{folder / 'task.json'} is broken ({error}): delete the folder and prepare it again"
        ) from error


def prepare_task(task: Task, root: Path, seed: int, sandbox: Sandbox) -> FolderTask:
    """Build `task` for `seed` under `root`, or reuse the folder of an equal build.

    Raises:
      NoHeadroomError: the reference does not beat the starting script on both halves.
      TaskError: the starting script or the reference fails, or `root` cannot be written.
      SandboxError: the sandbox failed.
    """
    root = Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
    except OSError as error:
        raise TaskError(
            f"{root}, for prepared tasks, cannot be written ({error}): choose another folder (--cache-dir, cache_dir)"
        ) from error
    try:
        # mkdtemp makes it 0700; the sandbox's unprivileged user may read everything but private/.
        building.chmod(0o755)
        spec = task.build(building, seed)
        identity = [spec.to_dict(), _digest_folder(building), sandbox.environment_digest]
        key = f"{spec.name}@{digest(identity)[:_DIGEST_LETTERS]}"
        if (root / key).is_dir():
            return open_task(root, key)
        scales = _measure(building, spec, sandbox)
        record = {
            "key": key,
            "spec": spec.to_dict(),
            "scale": scales["reward"].to_dict(),
            "report_scale": scales["report"].to_dict(),
            "environment": sandbox.environment_digest,
        }
        (building / "task.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        try:
            os.rename(building, root / key)
        except OSError:
            # Another process finished the same task first.
            if not (root / key).is_dir():
                raise
        return open_task(root, key)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _digest_folder(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under `folder`, by relative path."""
    return {
        path.relative_to(folder).as_posix(): _digest_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _measure(folder: Path, spec: TaskSpec, sandbox: Sandbox) -> dict[str, Scale]:
    """Return a scale for each half of the labels, from the scores of the starting script and of the reference.

    A task may state either score instead.
    """
    grader = load_grader(folder / "private")
    stated, stated_start = folder / "private" / M_BEST, folder / "private" / M_INIT
    starts: list[bytes] = []
    if not stated_start.exists():
        starts = _starts(folder, spec, sandbox)
    reference = None
    if not stated.exists():
        reference = _run("reference", folder / "private" / "reference.py", folder, spec, sandbox)
    scales = {}
    try:
        for half in HALVES:
            scores = [grader.grade(start, half) for start in starts] or [json.loads(stated_start.read_text())]
            first = statistics.fmean(scores)
            best = _stated(stated, first, spec) if reference is None else grader.grade(reference, half)
            scales[half] = Scale(first, best, spec.higher_is_better, _noise(scores))
    except (InvalidSubmissionError, GraderError) as error:
        raise author_error(spec.name, error) from error
    finally:
        grader.close()
    control = starts[0] if starts else reference
    if control is not None:
        (folder / CONTROL).write_bytes(control)
    gains = [scale.delta(scale.m_init, scale.m_best) for scale in scales.values()]
    noise = max(scale.noise for scale in scales.values())
    if not (min(gains) > noise and min(gains) >= _LEAST_AGREEMENT * max(gains)):
        reward, report = scales["reward"], scales["report"]
        raise NoHeadroomError(
            f"task {spec.name}: no headroom: on the halves of the hidden labels the starting script scores "
            f"{reward.m_init:.4g} and {report.m_init:.4g} (by its seed, up to {noise:.2g} more or less), the reference "
            f"{reward.m_best:.4g} and {report.m_best:.4g}; use a better reference, a weaker start, or more hidden rows"
        )
    return scales


def _starts(folder: Path, spec: TaskSpec, sandbox: Sandbox) -> list[bytes]:
    """Return submissions of the starting script with several seeds, or with two if the seed makes no difference."""
    submissions: list[bytes] = []
    for seed in range(_SEEDS):
        submissions.append(_run("starting script", folder / "env" / spec.entry, folder, spec, sandbox, seed))
        if submissions == submissions[:1] * 2:
            break
    return submissions


def _noise(scores: list[float]) -> float:
    """Return the noise of a score: two standard deviations of a difference, at least the largest deviation."""
    if len(set(scores)) < 2:
        return 0.0
    mean = statistics.fmean(scores)
    return max(2.0 * math.sqrt(2.0) * statistics.stdev(scores), *(abs(score - mean) for score in scores))


def _stated(path: Path, first: float, spec: TaskSpec) -> float:
    """Return the reference's score that `path` states, for a starting script that scores `first`."""
    stated = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(stated, dict):
        return first + (1 if spec.higher_is_better else -1) * stated["relative_gain"] * abs(first)
    return stated


def _run(what: str, script: Path, folder: Path, spec: TaskSpec, sandbox: Sandbox, seed: int = 0) -> bytes:
    """Run one of the task's own scripts and return its submission."""
    run = run_script(script.read_text(encoding="utf-8"), folder, spec, sandbox, seed)
    execution = run.execution
    if not run.ended_well:
        raise TaskError(
            f"task {spec.name}: its {what} ended with {execution.ending} (exit code {execution.exit_code}): "
            f"{execution.detail} {execution.stderr[-500:]}"
        )
    if run.submission is None:
        raise TaskError(f"task {spec.name}: its {what} leaves no readable {spec.submission}: {run.problem}")
    return run.submission
