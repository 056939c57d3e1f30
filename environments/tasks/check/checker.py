"""Verification of a task as an agent would meet it: `python -m environments check DIR`.

    read -> prepare (starting script, reference, headroom) -> prepare and run again -> cost
         -> labels (`leak_probe` in the sandbox, `examination` of public tables), shortcuts -> ideas -> submissions

Every check gives a `Finding`. If a task cannot be prepared, the findings end there. Otherwise all checks run, so that
an author sees all faults at once.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from environments import tasks
from environments.actions import edits
from environments.protocol import Limits
from environments.sandbox.base import Sandbox
from environments.tasks.check.examination import Examination, examine
from environments.tasks.folders.folder import FolderError
from environments.tasks.grading.halves import HALVES
from environments.tasks.grading.isolated import author_error
from environments.tasks.prepared import FolderTask
from environments.tasks.running import run_script
from environments.tasks.task import GraderError, InvalidSubmissionError, TaskError

_PROBE = Path(__file__).with_name("leak_probe.py")
_PROBE_LIMITS = Limits(cpu_seconds=120.0, wall_seconds=600.0, memory_mb=2048)
_LEAST_NEEDLE = 24
"""Minimum bytes of a searched piece of the labels. Shorter ones occur by chance."""
_NOISE = 0.1
"""Maximum difference of a second run of the starting script, as a share of the gap."""
_HUGE_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result of one check, in a line."""

    check: str
    ok: bool
    message: str
    remedy: str = ""
    """Remedy, if the check failed."""


def check(name: str, sandbox: Sandbox, seed: int = 0) -> list[Finding]:
    """Check the task called `name` (a folder's path, or any other name of a task) in `sandbox`.

    Raises:
      SandboxError: the sandbox failed, not the task.
    """
    with tempfile.TemporaryDirectory(prefix="mlagent-check-") as temporary:
        root = Path(temporary)
        try:
            spec = tasks.get(name).spec
        except TaskError as error:
            page = "docs/bring_your_own_task.md"
            mistakes = error.mistakes if isinstance(error, FolderError) else (str(error),)
            return [Finding("folder", False, text, "" if page in text else f"see {page}") for text in mistakes]
        findings = [
            Finding("folder", True, f"{spec.name}: {spec.kind}, {spec.metric}, {_better(spec.higher_is_better)}")
        ]
        try:
            task = tasks.prepare(name, root, seed, sandbox, warn=False)
        except TaskError as error:
            remedy = "the message names the file; run it by hand on the data that prepare.py writes"
            return [*findings, Finding("prepare", False, str(error), remedy)]
        findings.append(Finding("prepare", True, f"{task.key}, {task.grader.rows} hidden rows"))
        findings += [_headroom(task), _same_again(name, task, root, seed, sandbox)]
        run = run_script(task.script, task.folder, task.spec, sandbox)
        execution, submission = run.execution, run.submission
        if submission is None:
            message = f"a second run of the starting script failed: {execution.detail} {execution.stderr[-300:]}"
            return [*findings, Finding("starting script", False, message, "make it do the same in every run")]
        findings += [_stable(task, submission, sandbox), _cost(task, execution.cpu_seconds), _isolation(sandbox)]
        examination = examine(task)
        findings += [_labels(task, Path(name), sandbox, examination), _shortcuts(examination)]
        if spec.ideas:
            findings.append(_ideas(task, sandbox))
        findings += _submissions(task, submission)
        return findings


def _better(higher: bool) -> str:
    return f"{'higher' if higher else 'lower'} is better"


def _headroom(task: FolderTask) -> Finding:
    """Report the headroom; a task without any cannot be prepared."""
    scores = ", ".join(
        f"{half} half m_init {scale.m_init:.4g}, m_best {scale.m_best:.4g}"
        for half, scale in zip(HALVES, (task.scale, task.report_scale), strict=True)
    )
    return Finding("headroom", True, scores)


def _same_again(name: str, task: FolderTask, root: Path, seed: int, sandbox: Sandbox) -> Finding:
    try:
        again = tasks.prepare(name, root, seed, sandbox, warn=False)
        same = again.key == task.key
    except TaskError:
        same = False
    message = "the same seed gives the same data" if same else "the same seed gives other data the second time"
    return Finding("deterministic", same, message, "draw every random number in prepare.py from its argument `seed`")


def _stable(task: FolderTask, submission: bytes, sandbox: Sandbox) -> Finding:
    """Check that one seed gives one score. If scores differ between seeds, the first seed runs once more."""
    score, first = task.grade(submission), task.scale.m_init
    if task.scale.noise:
        again = run_script(task.script, task.folder, task.spec, sandbox).submission
        first = task.grade(again) if again is not None else math.nan
    ok = abs(score - first) <= _NOISE * task.scale.gap
    message = (
        f"the starting script scores {score:.4g} again, {first:.4g} at first; noise by seed {task.scale.noise:.2g}"
    )
    return Finding("starting script", ok, message, "seed what is random in it with the environment's MLAGENT_SEED")


def _cost(task: FolderTask, cpu_seconds: float) -> Finding:
    limit = task.spec.limits.cpu_seconds
    message = f"the starting script takes {cpu_seconds:.2f} of {limit:g} CPU seconds"
    return Finding("cost", cpu_seconds <= limit / 2, message, "raise limits.cpu_seconds: a better script takes longer")


def _isolation(sandbox: Sandbox) -> Finding:
    ok = "filesystem" in sandbox.guarantees
    message = f"the sandbox {sandbox.name} {'keeps' if ok else 'does not keep'} scripts from the host's files"
    return Finding("isolation", ok, message, "use a sandbox that gives the guarantee `filesystem` on this host")


def _labels(task: FolderTask, source: Path, sandbox: Sandbox, examination: Examination) -> Finding:
    """Run the probe in the task's workspace with its data, as an agent's script would run.

    The finding also names the leaks from the examination of the tables.
    """
    labels = task.grader.labels()
    private = task.folder / "private"
    paths = [str(path.resolve()) for path in (private, source) if path.exists()]
    needles = [base64.b64encode(needle).decode() for needle in _needles(labels, private)]
    wanted = json.dumps({"needles": needles, "paths": paths})
    packed = base64.b64encode(zlib.compress(wanted.encode())).decode()
    remedy = "take it out of env/ and of what prepare.py writes into public; `hidden` names what is a label"
    with tempfile.TemporaryDirectory(prefix="mlagent-check-") as temporary:
        workspace = Path(temporary) / "workspace"
        shutil.copytree(task.env, workspace)
        (workspace / "leak_probe.py").write_bytes(_PROBE.read_bytes())
        (workspace / "wanted.json").write_text(json.dumps({"packed": packed}), encoding="utf-8")
        execution = sandbox.run(workspace, "leak_probe.py", _PROBE_LIMITS, data=task.public)
    if execution.exit_code != 0:
        message = f"the search for labels did not end: {execution.detail} {execution.stderr[-300:]}"
        return Finding("labels", False, message, "nothing is known: make env/ and the public data smaller")
    seen = json.loads(execution.stdout.splitlines()[-1])
    if found := [*examination.leaks, *seen["found"]]:
        return Finding("labels", False, "; ".join(found[:5]), remedy)
    message = f"not in any of the {seen['searched']} files that a script can see, of which {examination.tables} tables "
    return Finding("labels", True, f"{message}were read cell by cell, nor at host paths")


def _shortcuts(examination: Examination) -> Finding:
    """Check that no guess without learning beats the reference."""
    remedy = "the labels follow from public data: split the rows in another way, or write a better reference"
    if examination.shortcuts:
        return Finding("shortcuts", False, "; ".join(examination.shortcuts[:5]), remedy)
    count = len(examination.tried)
    return Finding("shortcuts", True, f"{count} guesses without learning were graded, none beats the reference")


def _needles(labels: dict[str, list[str]], private: Path) -> Iterator[bytes]:
    """Yield bytes that hold the labels: every column in order, as text and as numbers, and pieces of private files."""
    for name, values in labels.items():
        if name == "id" or len(set(values)) < 2:
            continue
        yield from (mark.join(values).encode() for mark in ("\n", ",", ", ", " ", "\r\n"))
        try:
            numbers = np.array([float(value) for value in values])
        except ValueError:
            continue
        kinds = ["f8", "f4"]
        if np.all(numbers == np.rint(numbers)) and np.abs(numbers).max() < 2**31:
            kinds += ["i8", "i4", *(["u1"] if numbers.min() >= 0 and numbers.max() < 256 else [])]
        yield from (
            data for data in (numbers.astype(f"<{kind}").tobytes() for kind in kinds) if len(data) > _LEAST_NEEDLE
        )
    for path in sorted(private.rglob("*")):
        if path.is_file() and len(data := path.read_bytes()) > _LEAST_NEEDLE:
            yield data[:65536]


def _ideas(task: FolderTask, sandbox: Sandbox) -> Finding:
    """Apply each of the task's own ideas to the starting script, and run it."""
    failed, gains = [], []
    for idea in task.spec.ideas:
        edited = edits.replace_cell(task.script, idea.cell, idea.code)
        run = run_script(edited, task.folder, task.spec, sandbox)
        try:
            gains.append(task.scale.delta(task.scale.m_init, task.grade(run.submission or b"")))
        except InvalidSubmissionError as error:
            failed.append(f"{idea.text!r}: {run.execution.detail} {run.execution.stderr.strip()[-200:] or error}")
    if failed:
        return Finding("ideas", False, "; ".join(failed[:5]), "an idea's code must run in the starting script")
    better = sum(gain > 0 for gain in gains)
    return Finding("ideas", True, f"{len(gains)} run, {better} of them improve the starting script by themselves")


def _submissions(task: FolderTask, valid: bytes) -> Iterator[Finding]:
    """Check that broken submissions are refused, and that the order of rows does not matter."""
    for name, broken in _broken(task, valid):
        problem = _accepted(task, broken)
        remedy = "grade.py must raise InvalidSubmissionError here, and nothing else"
        yield Finding(f"submission: {name}", not problem, problem or "refused", remedy)
    header, *rows = _rows(valid)
    try:
        same = task.grade(_written(header, *reversed(rows))) == task.grade(valid)
    except InvalidSubmissionError:
        same = False
    message = "scores the same" if same else "scores differently"
    yield Finding("submission: rows in another order", same, message, "join submission and answers by their ids")


def _rows(submission: bytes) -> list[list[str]]:
    """Parse a submission into rows as a grader does: cells may hold line ends, and the last line need have none."""
    return list(csv.reader(io.StringIO(submission.decode(), newline="")))


def _written(*rows: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _accepted(task: FolderTask, submission: bytes) -> str:
    """Return what is wrong with the grading of a broken `submission`; empty if it is refused as it should be."""
    for grade in (task.grade, task.grade_report):
        try:
            return f"accepted, with a score of {grade(submission):.4g}"
        except InvalidSubmissionError as error:
            if error.__cause__ is not None:  # The grader failed, which is not a refusal.
                return str(author_error(task.spec.name, error))
        except GraderError as error:
            return str(author_error(task.spec.name, error))
    return ""


def _broken(task: FolderTask, valid: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield broken submissions with a description of the fault, each made from the valid one."""
    table, write = _rows(valid), _written
    header, first, *rest = table
    yield "empty file", b""
    yield "header alone", write(header)
    yield "no header", write(first, *rest)
    yield "another header", write([f"{name}_" for name in header], first, *rest)
    yield "a row missing", write(header, *rest)
    yield "an id twice", write(header, first, first, *rest[1:])
    yield "a row too many", write(header, first, *rest, first)
    yield "an unknown id", write(header, ["-1", *first[1:]], *rest)
    yield "a column missing", write(*(row[:-1] for row in table))
    yield "a column too many", write(*([*row, "1"] for row in table))
    numeric = [place for place, kind in enumerate(task.grader.kinds.values(), start=1) if kind != "text"]
    for cell in ("nan", "inf", "-inf", "", "abc", "1e999") if numeric else ():
        yield f"a cell of {cell!r}", write(header, [*first[: numeric[0]], cell, *first[numeric[0] + 1 :]], *rest)
    yield "not text", valid[:-1] + b"\xff\x00"
    yield "huge file", valid + b"0" * (_HUGE_BYTES - len(valid))
