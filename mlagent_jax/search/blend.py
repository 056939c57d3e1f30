"""Blends the submissions of several scripts: the mean of numbers, the majority of everything else.

As a program, it runs every script of `members/` as it ran when it was scored, and writes their blend. It needs only
Python and the packages that the scripts import (`pip install -r ../requirements.txt`, then `python blend.py`).
"""

import csv
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile


def blend(tables: list[str], weights: list[int], means: list[str]) -> str:
    """Return the blend of CSV tables with equal columns and ids.

    Args:
      tables: Texts of the tables, with the id in the first column.
      weights: Weight of each table.
      means: Columns that are averaged. Other columns get the value with the largest total weight, the first one in a
        tie.

    Raises:
      ValueError: The tables differ in columns or ids.
    """
    # Blank lines count as nothing, as in grading.
    read = [[row for row in csv.reader(io.StringIO(table)) if row] for table in tables]
    header = read[0][0]
    rows = [{row[0]: row for row in table[1:]} for table in read]
    if any(table[0] != header or other.keys() != rows[0].keys() for table, other in zip(read, rows, strict=True)):
        raise ValueError("the tables differ in columns or ids")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for key in rows[0]:
        columns = zip(*(table[key] for table in rows), strict=True)
        writer.writerow(_cell(values, weights, name in means) for name, values in zip(header, columns, strict=True))
    return out.getvalue()


def _cell(values: tuple[str, ...], weights: list[int], is_mean: bool) -> str:
    if is_mean:
        return repr(sum(float(value) * weight for value, weight in zip(values, weights, strict=True)) / sum(weights))
    votes: dict[str, int] = {}
    for value, weight in zip(values, weights, strict=True):
        votes[value] = votes.get(value, 0) + weight
    return max(votes, key=votes.__getitem__)


def run(member: pathlib.Path, data: pathlib.Path, plan: dict) -> str:
    """Run the script of one member, and return its submission.

    Args:
      member: Folder of the member's workspace.
      data: Folder of the task's public data.
      plan: Contents of `members.json`.

    Raises:
      CalledProcessError: The script fails.
    """
    program = (
        "import random, runpy, sys\nrandom.seed({seed})\n"
        "try:\n    import numpy\n    numpy.random.seed({seed} % 2**32)\n"
        "except ImportError:\n    pass\nsys.argv = [{entry!r}]\nrunpy.run_path({entry!r}, run_name='__main__')\n"
    ).format(seed=plan["seed"], entry=plan["entry"])
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder, "work")
        shutil.copytree(member, work)
        (work / "data").symlink_to(data)
        subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", program], cwd=work, env={**os.environ, **plan["environment"]}, check=True
        )
        return (work / plan["submission"]).read_text(encoding="utf-8-sig")


def main() -> None:
    """Run all members and write the blend of their submissions."""
    here = pathlib.Path(__file__).resolve().parent
    plan = json.loads((here / "members.json").read_text())
    names, weights = list(plan["members"]), list(plan["members"].values())
    tables = [run(here / "members" / name, here.parent / "data", plan) for name in names]
    (here / pathlib.Path(plan["submission"]).name).write_text(blend(tables, weights, plan["means"]))
    print(f"blended {len(names)} scripts")


if __name__ == "__main__":
    main()
