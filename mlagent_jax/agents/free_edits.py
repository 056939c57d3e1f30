"""Edits as a person or a language model writes them: a thought in varied words, and one of several forms of one change.

The scripted expert of the profile `medium` writes with it. Everything is a function of the arguments and of `rng`.
"""

from __future__ import annotations

import difflib
import random
import re

from environments.actions import Action, ActionError
from environments.actions.edits import apply_patch, replace_cell
from environments.protocol import State
from environments.tasks.generated.ideas import Idea

FORMS = {"Edit Script (Patch)": 6, "Edit Script (Cell)": 3, "Edit Script (Whole)": 1}
"""Forms of an edit, and how often each is chosen."""
_TRY = (
    "I try this: {idea}.",
    "Next I test an idea: {idea}.",
    "Let me see whether this helps: {idea}.",
    "This may help here: {idea}.",
    "Not tried yet: {idea}.",
    "I change the {cell} cell: {idea}.",
    "The {cell} cell is plain so far. A change to test: {idea}.",
    "What about this: {idea}? I run it and look at the score.",
    "A small change to the {cell} part: {idea}.",
    "My guess is that this suits the data: {idea}.",
)
_TRY_AFTER = (
    "The script prints {score} now. I try to better that: {idea}.",
    "After {score}, my next idea is: {idea}.",
    "{score} leaves room. Next: {idea}.",
)
_LOOK = (
    "I run the script as it is, to see where it stands.",
    "Before I change more, I want to see what the script prints.",
    "I look at the current score first.",
    "Let me run it unchanged once.",
)
_MEND = (
    "The last edit failed: {error}. I repair it.",
    "That run ended with an error ({error}). The idea is the same, the code is now right.",
    "My mistake: {error}. I correct the code.",
    "{error}: I fix that line and run again.",
)
_QUOTE = (
    "The edit did not apply, because I misquoted the script. I copy it exactly.",
    "I named something that is not in the script. Once more, with what is there.",
    "Nothing was changed: {error}. I write the edit again.",
)
_UNDO_ERROR = (
    "That edit broke the script ({error}). I take it back.",
    "The change does not run: {error}. I undo it and go another way.",
)
_UNDO_WORSE = (
    "The score went from {before} to {after}, which is worse. I undo the edit.",
    "{after} after {before}: the last edit hurt. I take it back.",
    "That made it worse ({after}, it was {before}), so I undo it.",
)
_WORDINGS = {
    "try": _TRY,
    "look": _LOOK,
    "mend": _MEND,
    "quote": _QUOTE,
    "undo": _UNDO_ERROR,
    "worse": _UNDO_WORSE,
}
_SCORE = re.compile(r"validation \S+ (-?[\d.]+(?:e[-+]?\d+)?)")


def edit(entry: str, script: str, cell: str, code: str, rng: random.Random) -> Action:
    """Return an edit of `script` that gives `cell` the body `code`, in a form drawn by its weight."""
    forms = {"Edit Script (Cell)": code.rstrip()}
    try:
        new = replace_cell(script, cell, code.rstrip())
    except ActionError:  # The cell is gone: the answer says which there are.
        new = ""
    if new:
        forms["Edit Script (Whole)"] = new.rstrip("\n")
    if patch := as_patch(script, new, rng.randrange(2)) if new else "":
        forms["Edit Script (Patch)"] = patch
    name = rng.choices(list(forms), [FORMS[form] for form in forms])[0]
    arguments = {"script_name": entry} | ({"cell": cell} if name == "Edit Script (Cell)" else {})
    return Action(name, arguments, forms[name])


def as_patch(old: str, new: str, context: int = 0) -> str:
    """Return SEARCH / REPLACE blocks that turn `old` into `new`, or an empty string if there are none.

    Args:
      old: Text of the script.
      new: Text after the edit.
      context: Minimum number of unchanged lines that each SEARCH quotes. More are added until it matches one place.
    """
    before, after = old.split("\n"), new.split("\n")
    changes = [
        change
        for change in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        if change[0] != "equal"
    ]
    if not changes:
        return ""
    whole = ("replace", changes[0][1], changes[-1][2], changes[0][3], changes[-1][4])
    for hunks in (changes, [whole]):  # Blocks that come too close to each other are made one.
        blocks = [_block(before, after, hunk, context) for hunk in hunks]
        patch = "\n".join(blocks)
        try:
            if apply_patch(old, patch) == (new, False):
                return patch
        except ActionError:
            continue
    return ""


def _block(before: list[str], after: list[str], hunk: tuple[str, int, int, int, int], context: int) -> str:
    """Return one block: the lines of `hunk`, with as many lines around it as make its SEARCH unique."""
    _, old_start, old_end, new_start, new_end = hunk
    start, end, quoted = old_start, old_end, 0
    while not _is_unique(before, start, end) or (quoted < context and start > 0):
        if start > 0 and quoted % 3 < 2:
            start -= 1
        elif end < len(before):
            end += 1
        elif start > 0:
            start -= 1
        else:
            break
        quoted += 1
    replace = [*before[start:old_start], *after[new_start:new_end], *before[old_end:end]]
    return "\n".join(["<<<<<<< SEARCH", *before[start:end], "=======", *replace, ">>>>>>> REPLACE"])


def _is_unique(lines: list[str], start: int, end: int) -> bool:
    """Return whether the lines from `start` to `end` have text and occur once."""
    wanted = lines[start:end]
    places = (at for at in range(len(lines) - len(wanted) + 1) if lines[at : at + len(wanted)] == wanted)
    return any(line.strip() for line in wanted) and sum(1 for _ in places) == 1


def misquoted(action: Action, rng: random.Random) -> Action | None:
    """Return the edit with a quotation of the script that is wrong, so that it cannot apply; None if it has none."""
    if action.name == "Edit Script (Cell)":
        wrong = rng.choice((action.arguments["cell"].title(), f"{action.arguments['cell']}s"))
        return Action(action.name, {**action.arguments, "cell": wrong}, action.block)
    if action.name != "Edit Script (Patch)":
        return None
    lines = action.block.split("\n")
    place = next(at for at in range(1, len(lines)) if lines[at].strip())
    lines[place] += rng.choice(("  # as before", ";", " + 0"))
    return Action(action.name, action.arguments, "\n".join(lines))


def scores(state: State) -> list[float | None]:
    """Return the validation score that each step of the history printed, or None."""
    found = [_SCORE.search(step.observation) for step in state.history]
    return [match and float(match[1]) for match in found]


def is_worse(state: State, higher_is_better: bool) -> bool:
    """Return whether the last step printed a worse validation score than the one before it."""
    printed = scores(state)[-2:]
    if len(printed) < 2 or None in printed or printed[0] == printed[1]:
        return False
    return (printed[1] < printed[0]) is higher_is_better


def thought(kind: str, state: State, rng: random.Random, idea: Idea | None = None) -> str:
    """Return a thought before a step.

    Args:
      kind: `try`, `look`, `mend` (a script that failed), `quote` (an edit that did not apply), `undo` (a script that
        failed) or `worse` (undo of an edit after which the score was worse).
      state: State in which the step is taken.
      rng: Source of the choice among wordings.
      idea: Idea that is tried.
    """
    last = state.history[-1].observation.strip() if state.history else ""
    printed = _SCORE.search(last)
    choices = _WORDINGS[kind] + (_TRY_AFTER if kind == "try" and printed else ())
    before, after = [None, None, *scores(state)][-2:]
    error = last.splitlines()[-1].removeprefix("EnvError: ").rstrip(".")[:90] if last else "an error"
    return rng.choice(choices).format(
        idea=idea.text if idea else "",
        cell=idea.cell if idea else "",
        score=printed[0] if printed else "",
        error=error,
        before=before,
        after=after,
    )
