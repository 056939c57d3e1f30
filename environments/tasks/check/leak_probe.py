"""The script that looks for hidden labels from inside a sandbox, as an agent's script could: run by `checker` alone.

It reads what it looks for from `wanted.json`, packed so that the search does not find itself, and prints a line of
JSON: what it found. It is text for the sandbox and imports nothing but the standard library.
"""

import base64
import csv
import json
import os
import stat
import zlib
from collections.abc import Iterator

LARGEST = 32 << 20
PSEUDO = {"/proc", "/sys", "/dev"}


def files(root: str) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in PSEUDO]
        for name in names:
            path = os.path.join(folder, name)
            try:
                status = os.stat(path, follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST:
                yield path


def number(text: str) -> str:
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return text.strip()


def leaking_column(path: str, labels: dict[str, list[str]]) -> str | None:
    """A column of a table that holds the hidden labels: in their order, or beside their ids in any order."""
    with open(path, newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    if not table or len(table) < len(labels["id"]):
        return None
    width = len(table[0])
    if any(len(row) != width for row in table):
        return None
    columns = [[number(row[place]) for row in table] for place in range(width)]
    ids = [number(cell) for cell in labels["id"]]
    orders = [
        range(first, first + len(ids)) for first in {0, 1, len(table) - len(ids)} if first + len(ids) <= len(table)
    ]
    for column in columns:
        places = {cell: place for place, cell in enumerate(column)}
        if len(places) == len(column) and all(cell in places for cell in ids):
            orders.append([places[cell] for cell in ids])
    for name, values in labels.items():
        truth = [number(value) for value in values]
        if name == "id" or len(set(truth)) < 2:
            continue
        for place, column in enumerate(columns):
            if any([column[row] for row in order] == truth for order in orders):
                return f"{table[0][place][:40]!r} is {name}"
    return None


def main() -> None:
    with open("wanted.json", encoding="utf-8") as file:
        wanted = json.loads(zlib.decompress(base64.b64decode(json.load(file)["packed"])))
    needles = [base64.b64decode(needle) for needle in wanted["needles"]]
    found = [f"the host's {path} is there" for path in wanted["paths"] if os.path.exists(path)]
    found += [f"the host's {path} is there" for path in wanted["paths"] if os.path.exists(f"/proc/1/root{path}")]
    searched = 0
    for path in files("/"):
        searched += 1
        try:
            with open(path, "rb") as file:
                content = file.read()
            if any(needle in content for needle in needles):
                found.append(f"{path} holds the hidden labels")
            elif path.startswith(f"{os.getcwd()}/"):
                column = leaking_column(path, wanted["labels"])
                if column:
                    found.append(f"{path}: column {column}")
        except (OSError, UnicodeDecodeError, csv.Error):  # No table.
            continue
    print(json.dumps({"found": sorted(set(found)), "searched": searched}))


main()
