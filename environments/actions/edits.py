"""Edits of a script without a second model, as pure functions of its text: a cell, a range of lines, a patch.

Edits take and return `plain` text, and raise `ActionError` if they do not apply. A replacement keeps the blank lines
around the old text, so that an edit which repeats the old code is recognised as no edit.
"""

from __future__ import annotations

import difflib
import re

from environments.actions.errors import ActionError

MAX_HEADER = 300
"""Maximum length of a cell header. Skipping longer lines bounds the time of the search."""
MAX_DIFF_LINES = 400
"""Maximum changed lines on either side for an aligned diff; the alignment's worst case is cubic in them."""
MAX_COMPARED = 120
"""Maximum length of a line that is compared with others to find the one that was meant."""
_MARK = "\ufeff"
_HEADER = re.compile(rf"{_MARK}?# ?%%(?P<title>.*)")
_TITLE_END = re.compile(r"\s*(\[\w+\].*|\b[\w-]+\s*=.*)$")


def cell_name(line: str) -> str | None:
    """Return the name of the cell that starts at `line` (`# %% model`), or None if it is not a cell header.

    Jupytext's cell type (`[markdown]`) and metadata (`key=value`) are not part of the name.
    """
    match = _HEADER.fullmatch(line.rstrip()) if len(line) <= MAX_HEADER else None
    return None if match is None else _TITLE_END.sub("", match["title"]).strip()


def plain(text: str) -> str:
    """Return a script's text as edits and prompts see it: without byte-order mark, each line end as `\\n`."""
    return text.removeprefix(_MARK).replace("\r\n", "\n")


def in_style_of(old: str, new: str) -> str:
    """Return the plain text `new` with the byte-order mark of `old`, and with its line ends if they are uniform."""
    if "\r\n" in old and old.count("\r\n") == old.count("\n"):
        new = new.replace("\n", "\r\n")
    return _MARK * old.startswith(_MARK) + new


def read_cells(text: str) -> dict[str, str]:
    """Return the cells of a script in percent format, body by name, without the text before the first cell."""
    lines = plain(text).split("\n")
    return {name: "\n".join(lines[start:end]).rstrip("\n") for name, start, end in _cells(lines)}


def _cells(lines: list[str]) -> list[tuple[str, int, int]]:
    """Return every cell in order: name, first line after its header, and line of the next header or the end."""
    headers = [(name, index) for index, line in enumerate(lines) if (name := cell_name(line)) is not None]
    ends = [*(index for _, index in headers[1:]), len(lines)]
    return [(name, index + 1, end) for (name, index), end in zip(headers, ends, strict=False)]


def replace_cell(text: str, cell: str, block: str) -> str:
    """Replace the body of the cell called `cell`: the lines after its header up to the next header."""
    lines = text.split("\n")
    cells = _cells(lines)
    names = [name for name, _, _ in cells]
    cell = cell.strip()
    if names.count(cell) != 1:
        found = "no cell" if cell not in names else f"{names.count(cell)} cells"
        raise ActionError(f"there is {found} named {cell!r}; the cells are: {', '.join(names) or 'none'}.")
    _, start, end = cells[names.index(cell)]
    new = block.split("\n")
    if cell_name(new[0]) == cell:  # The header repeated above the body.
        new = new[1:]
    taken = sorted({name for name, _, _ in _cells(new)} & set(names))
    if taken:
        raise ActionError(f"the block for cell {cell!r} holds the header of cell {taken[0]!r}: edit one at a time.")
    return "\n".join([*lines[:start], *_with_margins_of(lines[start:end], new), *lines[end:]])


def replace_lines(text: str, start: int, end: int, block: str) -> str:
    """Replace lines `start` to `end` (from 1, inclusive); `end = start - 1` inserts before `start`."""
    lines = text.split("\n")
    if not 1 <= start <= len(lines) or not start - 1 <= end <= len(lines):
        raise ActionError(f"lines {start} to {end} are not a range of the file, which ends at line {len(lines)}.")
    new = block.split("\n") if block else []
    return "\n".join([*lines[: start - 1], *new, *lines[end:]])


def apply_patch(text: str, patch: str) -> tuple[str, bool]:
    """Apply SEARCH / REPLACE blocks in order. Each SEARCH must match whole lines at exactly one place.

    Where a SEARCH matches nowhere, spaces at the ends of lines and blank lines at its ends are ignored: a prompt does
    not show them.

    Returns:
      The new text, and whether something was ignored.
    """
    lines, is_repaired = text.split("\n"), False
    for number, (search, replace) in enumerate(_search_replace_blocks(patch), start=1):
        places = _places(lines, search)
        if not places:
            search = _stripped([line.rstrip() for line in search])
            places = _places([line.rstrip() for line in lines], search)
            is_repaired = True
        if len(places) != 1:
            problem = "is in the file more than once: add lines around it" if places else _unfound(lines, search)
            raise ActionError(f"the SEARCH text of block {number} {problem}; it must match whole lines at one place.")
        lines[places[0] : places[0] + len(search)] = replace
    return "\n".join(lines), is_repaired


def _places(lines: list[str], wanted: list[str]) -> list[int]:
    """Return the indices at which the lines `wanted` begin in `lines`, at most two of them."""
    if not wanted:
        return []
    # With a line end on both sides of every line, a plain search matches whole lines only.
    framed, searched = "".join(f"\n{line}" for line in lines) + "\n", "".join(f"\n{line}" for line in wanted) + "\n"
    first = framed.find(searched)
    second = framed.find(searched, first + 1) if first >= 0 else -1
    return [framed.count("\n", 0, place) for place in (first, second) if place >= 0]


def _unfound(lines: list[str], search: list[str]) -> str:
    """Say why a SEARCH text is not in the file: the first line that is not, and the line that is most like it."""
    known = {line.strip() for line in lines}
    missing = next((line.strip() for line in search if line.strip() not in known), None)
    if missing is None:
        return "is not in the file, though its lines are: mind their order and indentation"
    short = [line for line in dict.fromkeys(map(str.strip, lines)) if 0 < len(line) <= MAX_COMPARED][:MAX_DIFF_LINES]
    near = difflib.get_close_matches(missing[:MAX_COMPARED], short, n=1)
    meant = f", but there is `{near[0]}`" if near else ""
    return f"is not in the file: no line is `{missing[:MAX_COMPARED]}`{meant}"


def _search_replace_blocks(patch: str) -> list[tuple[list[str], list[str]]]:
    """Return pairs of (lines to find, replacement lines)."""
    blocks: list[tuple[list[str], list[str]]] = []
    search: list[str] | None = None
    replace: list[str] | None = None
    for line in patch.split("\n"):
        marker = line.rstrip()
        if search is None:
            if marker == "<<<<<<< SEARCH":
                search = []
            elif marker:
                raise ActionError("a patch is made of blocks <<<<<<< SEARCH, =======, >>>>>>> REPLACE alone.")
        elif replace is None:
            if marker == "=======":
                replace = []
            else:
                search.append(line)
        elif marker == ">>>>>>> REPLACE":
            if not search:
                raise ActionError(f"the SEARCH text of block {len(blocks) + 1} is empty.")
            blocks.append((search, replace))
            search = replace = None
        else:
            replace.append(line)
    if search is not None:
        missing = "=======" if replace is None else ">>>>>>> REPLACE"
        raise ActionError(f"block {len(blocks) + 1} of the patch has no line {missing}.")
    if not blocks:
        raise ActionError("the patch has no block <<<<<<< SEARCH, =======, >>>>>>> REPLACE.")
    return blocks


def unified_diff(old: str, new: str, name: str) -> str:
    """Return the unified diff from `old` to `new`, in bounded time for any texts."""
    before, after = old.split("\n"), new.split("\n")
    if before == after:
        return ""
    head = _common_prefix(before, after)
    tail = _common_prefix(before[head:][::-1], after[head:][::-1])
    removed, added = before[head : len(before) - tail], after[head : len(after) - tail]
    if max(len(removed), len(added)) > MAX_DIFF_LINES:
        range_line = f"@@ -{head + 1},{len(removed)} +{head + 1},{len(added)} @@"
        body = [range_line, *(f"-{line}" for line in removed), *(f"+{line}" for line in added)]
        return "\n".join([f"--- {name}", f"+++ {name}", *body])
    # Drop equal lines far from the change: keep the context that the diff shows, then renumber from there.
    first, last = max(head - 3, 0), max(tail - 3, 0)
    lines = difflib.unified_diff(
        before[first : len(before) - last], after[first : len(after) - last], name, name, lineterm=""
    )
    return "\n".join(_shifted(line, first) for line in lines)


def _shifted(line: str, offset: int) -> str:
    """Return a line of a diff, with the line numbers of a range header moved by `offset`."""
    if not line.startswith("@@ "):
        return line
    return re.sub(r"([-+])(\d+)", lambda match: f"{match[1]}{int(match[2]) + offset}", line)


def _common_prefix(left: list[str], right: list[str]) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


def _with_margins_of(old: list[str], new: list[str]) -> list[str]:
    """Return `new` with the leading and trailing blank lines of `old`."""
    new = _stripped(new)
    old_blank = [not line.strip() for line in old]
    if all(old_blank):
        return [*new, *(old or [""])] if new else old
    head = old_blank.index(False)
    tail = len(old) - old_blank[::-1].index(False)
    return [*old[:head], *new, *old[tail:]]


def _stripped(lines: list[str]) -> list[str]:
    """Strip the blank lines at both ends."""
    filled = [index for index, line in enumerate(lines) if line.strip()]
    return lines[filled[0] : filled[-1] + 1] if filled else []
