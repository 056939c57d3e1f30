"""A benchmark folder in the layout of MLAgentBench (arXiv 2310.03302) as a task, named by its path.

    <folder>/
      env/                              the agent's files: train.py, and data beside it
      scripts/research_problem.txt      the description
      scripts/eval.py                   get_score(folder with submission.csv) -> float
      scripts/read_only_files.txt       optional: globs of files that the agent may not change
      scripts/prepare.py                optional: already run by MLAgentBench, which then leaves scripts/prepared
      scripts/mlagent.yaml              optional, read by us: metric (name, direction), m_init, m_best, limits

env/data is mounted as data/; the rest of env/ is the workspace. eval.py is trusted. It runs outside the sandbox in a
grader process (`isolated`), beside a copy of scripts/, and gets nothing but the submission. There are no halves: the
training metric is the reported metric.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from environments.protocol import LIMIT_RANGES, Limits, limit_problem
from environments.tasks.folders.bounded_yaml import read_text, read_yaml
from environments.tasks.task import M_BEST, M_INIT, InvalidSubmissionError, TaskError, TaskSpec

MARK = "mlagentbench.json"
"""Marker file in private/ of such a task."""
SUCCESS = 0.1
"""MLAgentBench's threshold of success: relative gain over the starting script. It defines m_best if none is stated."""
ENTRY = "train.py"
DIRECTIONS = {
    "CLRS": ("score", "higher"),
    "amp-parkinsons-disease-progression-prediction": ("smape", "lower"),
    "babylm": ("perplexity", "lower"),
    "cifar10": ("accuracy", "higher"),
    "fathomnet": ("map at 20", "higher"),
    "feedback": ("mcrmse", "lower"),
    "house-price": ("mae", "lower"),
    "identify-contrails": ("dice", "higher"),
    "imdb": ("accuracy", "higher"),
    "llama-inference": ("seconds", "lower"),
    "ogbn-arxiv": ("accuracy", "higher"),
    "spaceship-titanic": ("accuracy", "higher"),
    "vectorization": ("seconds", "lower"),
}
"""Metric and direction of MLAgentBench's benchmarks, which none of their files states."""
_NOT_FOR_EVAL = ("__pycache__", "research_problem.txt", "read_only_files.txt", "source_code.txt", "prepare*")


@dataclasses.dataclass(frozen=True)
class BenchmarkRecipe:
    """An `environments.tasks.task.Task` made from a benchmark folder."""

    spec: TaskSpec
    m_init: float | None
    """Metric of the starting script if that has gaps to fill in and cannot run; None: measure it."""
    m_best: float | None
    folder: Path

    def build(self, directory: Path, seed: int) -> TaskSpec:
        """Write env/, public/ and private/ under `directory` (see `environments.tasks.task.Task`)."""
        env, public, private = (directory / name for name in ("env", "public", "private"))
        ignore = shutil.ignore_patterns("__pycache__", ".git")
        shutil.copytree(self.folder / "env", env, ignore=ignore)
        if (env / "data").is_dir():
            (env / "data").rename(public)
        public.mkdir(exist_ok=True)
        (public / "description.md").write_text(self.spec.description + "\n", encoding="utf-8")
        private.mkdir(mode=0o700)
        shutil.copytree(self.folder / "scripts", private / "scripts", ignore=shutil.ignore_patterns(*_NOT_FOR_EVAL))
        (private / MARK).write_text(json.dumps({"benchmark": self.folder.name}), encoding="utf-8")
        stated = {"relative_gain": SUCCESS} if self.m_best is None else self.m_best
        (private / M_BEST).write_text(json.dumps(stated), encoding="utf-8")
        if self.m_init is not None:
            (private / M_INIT).write_text(json.dumps(self.m_init), encoding="utf-8")
        return self.spec


class BenchmarkGrader:
    """A benchmark's own eval.py (`environments.tasks.graders.Grader`)."""

    rows = 1
    kinds: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, private: Path) -> None:
        self._private = private
        self._last: tuple[bytes, float] | None = None

    def open(self) -> None:
        """Do nothing: eval.py is executed anew for each submission."""

    def labels(self) -> dict[str, list[str]]:
        """Return no labels, as none are known by name. Files beside eval.py are searched as they are."""
        return {"id": []}

    def grade(self, submission: bytes, half: str) -> float:
        """Return the result of get_score, the same for both halves.

        Raises:
          InvalidSubmissionError: the result is not a finite number.
          Exception: any exception of eval.py.
        """
        if self._last is None or self._last[0] != submission:
            self._last = (submission, self._evaluate(submission))
        return self._last[1]

    def _evaluate(self, submission: bytes) -> float:
        """Execute eval.py anew in a copy of its folder. Call this only in a dedicated process."""
        here = os.getcwd()
        with tempfile.TemporaryDirectory(prefix="mlagent-eval-") as temporary:
            root = Path(temporary)
            scripts, handed_in = root / "scripts", root / "handed-in"
            shutil.copytree(self._private / "scripts", scripts)
            (root / "env").symlink_to((self._private.parent / "env").resolve())  # Some scripts read ../env.
            handed_in.mkdir()
            (handed_in / "submission.csv").write_bytes(submission)
            os.chdir(scripts)
            sys.path.append(str(scripts))  # Last, so that no file beside eval.py shadows a library.
            try:
                spec = importlib.util.spec_from_file_location("benchmark_eval", scripts / "eval.py")
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                score = float(module.get_score(str(handed_in)))
            finally:
                sys.path.remove(str(scripts))
                os.chdir(here)
        if not math.isfinite(score):
            raise InvalidSubmissionError("its metric is not a finite number")
        return score


def is_benchmark(folder: Path) -> bool:
    """Check whether `folder` has MLAgentBench's layout and not ours."""
    return (folder / "scripts" / "eval.py").is_file() and not (folder / "task.yaml").exists()


def read_benchmark(folder: Path) -> BenchmarkRecipe:
    """Read the task in `folder` without executing anything in it.

    Raises:
      TaskError: a file is missing or wrong; the message names it and the valid values.
    """
    folder = Path(folder).resolve()
    scripts = folder / "scripts"
    for name in (f"env/{ENTRY}", "scripts/research_problem.txt"):
        if not (folder / name).is_file():
            raise TaskError(f"{folder} has no {name}: it is not a benchmark in the layout of MLAgentBench")
    if (scripts / "prepare.py").is_file() and not (scripts / "prepared").exists():
        raise TaskError(
            f"{folder} is not prepared: run `python -u -m MLAgentBench.prepare_task {folder.name}`, which downloads "
            "data and leaves scripts/prepared"
        )
    fields = _fields(scripts / "mlagent.yaml")
    metric = fields.get("metric") or dict(
        zip(("name", "direction"), DIRECTIONS.get(folder.name, ("score", None)), strict=True)
    )
    if not isinstance(metric, dict) or metric.get("direction") not in ("higher", "lower"):
        raise TaskError(
            f"{scripts / 'mlagent.yaml'}: nothing says whether a higher score of {folder.name} is better: write "
            "`metric: {name: accuracy, direction: higher}` (or lower) there"
        )
    given = fields.get("limits", {})
    for limit, value in given.items() if isinstance(given, dict) else [("", given)]:
        expected = limit_problem(limit, value) if limit in LIMIT_RANGES else f"some of {', '.join(LIMIT_RANGES)}"
        if expected:
            raise TaskError(f"{scripts / 'mlagent.yaml'}: limits: {limit} is {value!r}, expected {expected}")
    limits = Limits(**{"cpu_seconds": 600, "wall_seconds": 1800, "memory_mb": 4096, **given})
    m_init, m_best = (_number(scripts / "mlagent.yaml", fields, name) for name in ("m_init", "m_best"))
    spec = TaskSpec(
        name=re.sub(r"[^\w.-]", "-", folder.name),
        kind="tabular",
        split="held_out",
        metric=str(metric.get("name", "score")),
        description=read_text(scripts / "research_problem.txt"),
        traits=f"MLAgentBench {folder.name}",
        source=f"MLAgentBench, {folder.name}.",
        entry=ENTRY,
        read_only=_read_only(scripts / "read_only_files.txt"),
        limits=limits,
        direction=metric["direction"],
    )
    return BenchmarkRecipe(spec, m_init, m_best, folder)


def _read_only(path: Path) -> tuple[str, ...]:
    """Read MLAgentBench's globs, without those of data/, which is read-only anyway."""
    lines = path.read_text(encoding="utf-8").split() if path.is_file() else []
    globs = [line.removeprefix("./") for line in lines]
    return tuple(glob for glob in globs if glob and glob != "data" and not glob.startswith("data/"))


def _number(path: Path, fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TaskError(f"{path}: {name} is {value!r}, expected a number")
    return None if value is None else float(value)


def _fields(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    fields = read_yaml(path)
    known = ("metric", "m_init", "m_best", "limits")
    wrong = [name for name in fields if name not in known] if isinstance(fields, dict) else [fields]
    if wrong:
        raise TaskError(f"{path} has {wrong[0]!r}; it may have {', '.join(known)}")
    return fields
