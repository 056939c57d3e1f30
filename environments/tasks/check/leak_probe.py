"""The script that looks for hidden labels from inside a sandbox, as an agent's script could: run by `checker` alone.

It looks for whole columns of labels as bytes, in every file that there is, and for the host's paths. Public tables are
read cell by cell on the host (`examination`).

It reads what it looks for from `wanted.json`, packed so that the search does not find itself, and prints a line of
JSON: what it found. It is text for the sandbox and imports nothing but the standard library.
"""

import base64
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
        except OSError:
            continue
    print(json.dumps({"found": sorted(set(found)), "searched": searched}))


main()
