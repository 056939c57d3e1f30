"""A table that becomes the task of a search."""

from __future__ import annotations

import shutil
from pathlib import Path

from environments.factory import reading, writing
from environments.factory.choices import Wishes, choose
from environments.interfaces.terminal import printable
from environments.tasks.task import TaskError
from mlagent_jax.runtime.files import one_at_a_time


def task_of_table(table: Path, target: str, folder: Path, seed: int) -> Path:
    """Write a task that predicts column `target` of `table`, unless `folder` has it already; return `folder`.

    A part of the table's rows is hidden from scripts. The columns that scripts do not see are printed, and what a
    person should look at.

    Raises:
      TaskError: The table cannot become a task, or `folder` was made from another table or target.
    """
    made, now = folder.parent / "table.txt", f"{table.resolve()}, {target}"
    plan = None if folder.exists() else choose(reading.read(table, target), Wishes(target=target))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder.parent / ".task.lock"):
        if folder.exists() and made.read_text(encoding="utf-8") != now:
            raise TaskError(f"{folder} was made from {made.read_text(encoding='utf-8')}: choose another --output")
        if plan is not None and not folder.exists():
            draft = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
            made.write_text(now, encoding="utf-8")
            origin = writing.Origin(f"Made from {reading.clean_name(table.name)} by `python -m mlagent_jax.solve`.")
            written = writing.write(plan, draft, writing.task_name(table.stem), origin, seed)
            draft.rename(folder)
            left_out = [f"left out: {one.value} ({one.reason})" for one in plan.decisions if one.what == "left out"]
            for line in [*left_out, *writing.remarks(plan, written)]:
                print(printable(f"table: {line}"), flush=True)
    return folder
