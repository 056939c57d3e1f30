"""Commands of the task factory: `new`, `build-suite`, `report`, and `check --all`.

python -m environments new TASK --data=FILE --target=COLUMN [--test=FILE] [--metric=NAME] [--split=NAME] ...
python -m environments build-suite --source=NAME --count=500 --out=DIR [--jobs=N]
python -m environments report DIR
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from environments.factory import reading
from environments.factory.choices import SPLITS, Wishes, choose
from environments.factory.sources import SOURCES
from environments.factory.suite.building import Build, build_suite
from environments.factory.suite.page import write_page
from environments.factory.suite.references import INDEX, read_suite
from environments.factory.writing import Origin, remarks, task_name, write
from environments.interfaces.terminal import printable
from environments.sandbox.base import Sandbox
from environments.tasks.check.checker import Finding, check
from environments.tasks.grading.metrics import METRICS
from environments.tasks.task import TaskError

Check = Callable[[argparse.Namespace], int]


def add(commands: Any, add_sandbox: Callable[[argparse.ArgumentParser], None], check_one: Check) -> None:
    """Add the commands to the parser of the command line."""
    command = commands.add_parser("new", help="make a checked task from a table")
    command.add_argument("task", metavar="TASK", help="name of the task, and of its folder")
    command.add_argument("--data", metavar="FILE", type=Path, required=True, help="table, or folder of images")
    command.add_argument("--target", metavar="COLUMN", required=True, help="column to predict")
    command.add_argument("--test", metavar="FILE", type=Path, help="test file of a competition, if there are two")
    command.add_argument("--out", metavar="DIR", type=Path, help="folder of the task (default ./TASK)")
    command.add_argument("--kind", choices=("tabular", "text", "image"), default="", help="default: chosen")
    command.add_argument(
        "--metric", choices=tuple(METRICS), default="", metavar="NAME", help=f"one of {', '.join(METRICS)}"
    )
    command.add_argument("--split", choices=SPLITS, default="", help="how rows are hidden (default: chosen)")
    command.add_argument("--time", metavar="COLUMN", default="", help="the latest rows by this column are hidden")
    command.add_argument("--group", metavar="COLUMN", default="", help="rows of one value of it stay together")
    command.add_argument("--text", metavar="COLUMN", default="", help="column that is a text")
    command.add_argument("--hidden", metavar="SHARE", type=float, default=0.0, help="share of hidden rows")
    command.add_argument("--drop", metavar="COLUMN", action="append", default=[], help="column to leave out")
    command.add_argument("--keep", metavar="COLUMN", action="append", default=[], help="column to keep in any case")
    command.add_argument("--no-check", action="store_true", help="write the folder, check it later")
    add_sandbox(command)
    command.set_defaults(command=lambda options: _new(options, check_one))

    command = commands.add_parser("build-suite", help="make hundreds of measured tasks from a source of tables")
    command.add_argument("--source", required=True, help=f"one of {', '.join(SOURCES.names())}")
    command.add_argument("--count", type=int, default=500, help="number of tasks to keep (default %(default)s)")
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the suite; resumed if there")
    command.add_argument("--jobs", type=int, default=1, help="processes (default %(default)s)")
    add_sandbox(command)
    command.set_defaults(command=_build)

    command = commands.add_parser("report", help="a page that lists a suite's tasks")
    command.add_argument("suite", metavar="DIR", type=Path)
    command.set_defaults(command=lambda options: print(write_page(options.suite)))


def _new(options: argparse.Namespace, check_one: Check) -> int:
    name = task_name(options.task)
    if name != options.task:
        raise TaskError(
            f"{options.task!r} is no name of a task: small letters, digits, `.`, `_`, `-`, such as {name!r}"
        )
    raw = reading.read(options.data, options.target)
    options.target = reading.find_column(raw, options.target)
    if options.test is not None:
        raw, note = reading.join(raw, reading.read(options.test, options.target), options.target)
        raw = dataclasses.replace(raw, notes=(*raw.notes, note))
    wishes = {field.name: getattr(options, field.name) for field in dataclasses.fields(Wishes)}
    for name in ("time", "group", "text"):
        wishes[name] = reading.find_column(raw, wishes[name])
    for name in ("drop", "keep"):
        wishes[name] = tuple(reading.find_column(raw, one) for one in wishes[name])
    plan = choose(raw, Wishes(**wishes))
    folder = options.out or Path(name)
    origin = Origin(f"Made from {reading.clean_name(options.data.name)} by `python -m environments new`.")
    written = write(plan, folder, name, origin, options.seed)
    rows = [(decision.what, decision.value, decision.reason, decision.flag) for decision in plan.decisions]
    print(printable(_table(("chosen", "", "because", "change with"), rows)))
    columns = [
        (repr(column.name), column.role, str(column.distinct), str(column.missing), column.note)
        for column in list(plan.profile.columns.values())[:60]
    ]
    print(printable("\n" + _table(("column", "role", "values", "missing", ""), columns)))
    scores = written.chosen
    print(f"\ncross-validation on public rows: start {scores.start_score:.4g}, reference {scores.reference_score:.4g}")
    if attention := remarks(plan, written):
        print(printable("\nPlease look at:\n" + "\n".join(f"- {one}" for one in attention)))
    print(printable(f"\nwritten: {folder}\n"), flush=True)
    if options.no_check:
        return 0
    options.task, options.json, options.all = f"{folder}/", False, False
    return check_one(options)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    rows = [header, *rows]
    widths = [min(40, max(len(row[place]) for row in rows)) for place in range(len(header))]
    lines = [
        "  ".join(f"{cell[:80]:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * min(100, max(map(len, lines))), *lines[1:]])


def _build(options: argparse.Namespace) -> int:
    build = Build(options.source, options.count, options.out, options.seed, options.jobs, options.sandbox)
    return int(build_suite(build, lambda line: print(line, flush=True)) == 0)


def check_all(place: Path, sandbox: Sandbox, seed: int) -> Iterator[tuple[str, list[Finding]]]:
    """Check every task of a suite, or every task's folder in `place`, one after the other.

    Raises:
      TaskError: there is none.
      SandboxError: the sandbox failed.
    """
    if (place / INDEX).is_file():
        places = {reference.name: reference.place for reference in read_suite(place)}
    else:
        places = {path.parent.name: f"{path.parent}/" for path in sorted(place.glob("*/task.yaml"))}
    if not places:
        raise TaskError(f"{place} holds neither a suite ({INDEX}) nor folders of tasks")
    for name, folder in places.items():
        yield name, check(folder, sandbox, seed)
