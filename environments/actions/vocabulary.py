"""The actions as data: name, help, arguments, handler. Parser, prompt text and documentation are made from them.

Names, arguments, help and answers are those of MLAgentBench (`low_level_actions.py`, `high_level_actions.py`). The
edits that carry their new text in a fenced block are ours, and need no second model. The actions that need one
are in `assisted`, and are offered only if it is configured. A handler gets the files and the checked arguments,
changes the files, and returns an `Effect`, which says what happens next.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable

from environments.actions import edits
from environments.actions.errors import ActionError
from environments.actions.files import AgentFiles

MAX_INSPECTED_LINES = 101
"""Maximum lines that `Inspect Script Lines` shows (MLAgentBench refuses `end - start > 100`)."""


class Kind(enum.Enum):
    """Kind of value of an argument."""

    NAME = "name"
    """One line of text: a path, the name of a cell."""
    TEXT = "text"
    LINE = "line"
    """A line number: an integer, or a string of digits."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """One entry of an Action Input."""

    name: str
    help: str
    kind: Kind = Kind.NAME


@dataclasses.dataclass(frozen=True)
class Effect:
    """Result of an applied action, and what follows."""

    message: str
    """Answer to the agent, before the output of any execution."""
    changed: bool = False
    """Whether some file differs."""
    measured: bool = False
    """Whether the change can alter the entry script's behaviour, so that it must be run and graded."""
    execute: str | None = None
    """Script to run (a path inside the workspace), without any edit to score."""
    diff: str = ""
    final: bool = False
    repairs: tuple[str, ...] = ()
    """Deviations of the block that were repaired."""


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """One action."""

    name: str
    help: str
    arguments: tuple[Argument, ...]
    returns: str
    handler: Callable[..., Effect]
    """Function called as `handler(files, **arguments)`, with `block=` if the action has a block."""
    block: str | None = None
    """Content of the fenced block after the Action Input; None if the action has no block."""
    shown: bool = True
    """Whether the prompt lists the action. Others can be executed all the same, as in MLAgentBench."""
    assisted: bool = False
    """Whether the action needs a second language model: a function from prompt to answer, passed to the handler as
    `ask`."""


def list_files(files: AgentFiles, dir_path: str) -> Effect:
    return Effect("".join(f"{name}\n" for name in files.list(dir_path)))


def read_file(files: AgentFiles, file_name: str) -> Effect:
    return Effect(files.read(file_name))


def write_file(files: AgentFiles, file_name: str, content: str) -> Effect:
    return _write(files, file_name, content.encode(), f"File {file_name} written successfully.")


def append_file(files: AgentFiles, file_name: str, content: str) -> Effect:
    old = files.read_bytes(file_name) if files.exists(file_name) else b""
    return _write(files, file_name, old + content.encode(), f"File {file_name} appended successfully.")


def copy_file(files: AgentFiles, source: str, destination: str) -> Effect:
    return _write(files, destination, files.read_bytes(source), f"File {source} copied to {destination}")


def inspect_script_lines(files: AgentFiles, script_name: str, start_line_number: int, end_line_number: int) -> Effect:
    if end_line_number - start_line_number >= MAX_INSPECTED_LINES:
        raise ActionError("the number of lines to display is limited to 100 lines")
    lines = files.read(script_name).split("\n")
    shown = "\n".join(lines[max(start_line_number - 1, 0) : max(end_line_number, 0)])
    return Effect(f"Here are the lines (the file ends at line {len(lines)}):\n\n{shown}")


def execute_script(files: AgentFiles, script_name: str) -> Effect:
    inside, _ = files.resolve(script_name)
    if not files.exists(script_name):
        raise ActionError(f"The file {script_name} does not exist.")
    if inside.startswith("-"):
        raise ActionError(f"cannot execute {script_name}: a script's name does not begin with a dash.")
    return Effect("", execute=inside)


def final_answer(files: AgentFiles, final_answer: str) -> Effect:
    del files, final_answer
    return Effect("end", final=True)


def edit_cell(files: AgentFiles, script_name: str, cell: str, block: str) -> Effect:
    return _edit(files, script_name, lambda text: edits.replace_cell(text, cell, block))


def edit_lines(files: AgentFiles, script_name: str, start_line_number: int, end_line_number: int, block: str) -> Effect:
    return _edit(files, script_name, lambda text: edits.replace_lines(text, start_line_number, end_line_number, block))


def edit_patch(files: AgentFiles, script_name: str, block: str) -> Effect:
    repaired: list[bool] = []

    def change(text: str) -> str:
        new, is_repaired = edits.apply_patch(text, block)
        repaired.append(is_repaired)
        return new

    effect = _edit(files, script_name, change)
    return dataclasses.replace(effect, repairs=("spaces in SEARCH",)) if any(repaired) else effect


def edit_whole(files: AgentFiles, script_name: str, block: str) -> Effect:
    if not block.strip():
        raise ActionError("the block is empty; it holds the whole new script.")
    return _edit(files, script_name, lambda text: block.rstrip("\n") + "\n" * text.endswith("\n"))


def undo_edit_script(files: AgentFiles, script_name: str) -> Effect:
    inside = files.check_writable(script_name)
    backups = _backups(files, inside)
    if not backups:
        raise ActionError("There is no change to undo.")
    newest = backups[max(backups)]
    old, new = files.read(script_name) if files.exists(script_name) else "", files.read(newest)
    files.write(script_name, new)
    files.remove(newest)
    return Effect(
        f"Content of {script_name} after undo the most recent edit:\n{new}",
        changed=True,
        measured=old != new,
        diff=edits.unified_diff(old, new, inside),
    )


def _write(files: AgentFiles, name: str, content: bytes, message: str) -> Effect:
    """Write a file. Scripts can use only a file that existed before."""
    inside = files.check_writable(name)
    existed = files.exists(name)
    old = files.read_bytes(name) if existed else b""
    if existed and old == content:
        return Effect(message)
    files.write(name, content)
    diff = edits.unified_diff(old.decode(errors="replace"), content.decode(errors="replace"), inside)
    return Effect(message, changed=True, measured=existed, diff=diff)


def _edit(files: AgentFiles, name: str, change: Callable[[str], str]) -> Effect:
    """Rewrite a script in place."""
    files.check_writable(name)
    old = edits.plain(files.read(name))
    return save_edit(files, name, old, change(old))


def save_edit(files: AgentFiles, name: str, old: str, new: str) -> Effect:
    """Save the plain text `new`, edited from `old`, as `name`, in that file's style and after a backup of it."""
    inside = files.check_writable(name)
    existed = files.exists(name)
    if existed:
        before = files.read_bytes(name)
        text = before.decode(errors="replace")
        if edits.plain(text) == new:
            return Effect(f"The edit changes nothing: {name} is as it was.")
        files.write(f"backup/{inside}_{max(_backups(files, inside), default=0) + 1:04d}", before)
        files.write(name, edits.in_style_of(text, new))
    else:
        files.write(name, new)
    diff = edits.unified_diff(old, new, inside)
    return Effect(
        f"The edited file is saved to {name}. Here is the diff, please check if the edit is correct and desirable:\n\n"
        f"{diff}\n",
        changed=True,
        measured=existed,
        diff=diff,
    )


def _backups(files: AgentFiles, inside: str) -> dict[int, str]:
    """Return a script's backups by number; the newest has the highest."""
    folder, _, name = f"backup/{inside}".rpartition("/")
    try:
        candidates = files.list(folder)
    except ActionError:  # No edit was made yet.
        return {}
    pattern = re.compile(re.escape(name) + r"_(\d{4,9})")
    return {
        int(match[1]): f"{folder}/{candidate}" for candidate in candidates if (match := pattern.fullmatch(candidate))
    }


_SCRIPT = Argument("script_name", "a valid python script name with relative path to current directory if needed")
_FILE = Argument("file_name", "a valid file name with relative path to current directory if needed")
_EDITED = (
    "The observation will be the diff of the edit, followed by the output of the script that measures it, or an error "
    "message if the edit does not apply. You can use the Undo Edit Script action to undo the edit."
)

ACTIONS: dict[str, ActionSpec] = {
    spec.name: spec
    for spec in (
        ActionSpec(
            "List Files",
            "Use this to navigate the file system.",
            (Argument("dir_path", 'a valid relative path to a directory, such as "." or "folder1/folder2"'),),
            "The observation will be a list of files and folders in dir_path or current directory is dir_path is "
            "empty, or an error message if dir_path is invalid.",
            list_files,
        ),
        ActionSpec(
            "Read File",
            "Use this to read an existing file.",
            (_FILE,),
            "The observation will be the contents of the file read.",
            read_file,
            shown=False,
        ),
        ActionSpec(
            "Write File",
            "Use this to write a file. If the file already exists, it will be overwritten.",
            (_FILE, Argument("content", "the content to be written to the file", Kind.TEXT)),
            "A success message if the file is written successfully, or an error message if the file cannot be written.",
            write_file,
            shown=False,
        ),
        ActionSpec(
            "Append File",
            "Use this to append text to the end of a file.",
            (_FILE, Argument("content", "the content to be appended to the file", Kind.TEXT)),
            "A success message if the file is appended successfully, or an error message if the file cannot be "
            "appended.",
            append_file,
            shown=False,
        ),
        ActionSpec(
            "Copy File",
            "Use this to copy a file to a new location with a new name.",
            (
                Argument("source", _FILE.help),
                Argument("destination", _FILE.help),
            ),
            "A success message if the file is copied successfully, or an error message if the file cannot be copied.",
            copy_file,
        ),
        ActionSpec(
            "Undo Edit Script",
            "Use this to undo the last edit of the python script.",
            (_SCRIPT,),
            "The observation will be the content of the script before the last edit. If the script does not exist, "
            "the observation will be an error message.",
            undo_edit_script,
        ),
        ActionSpec(
            "Execute Script",
            "Use this to execute the python script. The script must already exist.",
            (_SCRIPT,),
            "The observation will be output of the script or errors.",
            execute_script,
        ),
        ActionSpec(
            "Final Answer",
            "Use this to indicate completion. IMPORTANT: You will not be able to perform any other actions after this "
            "one. Use this only when you are sure that you have completed the task (e.g. you have provided your "
            "submission as instructed).",
            (
                Argument(
                    "final_answer",
                    "summary of what you have accomplished and the final state of the task",
                    Kind.TEXT,
                ),
            ),
            "The observation will be empty.",
            final_answer,
        ),
        ActionSpec(
            "Inspect Script Lines",
            "Use this to inspect specific part of a python script precisely, or the full content of a short script. "
            "The number of lines to display is limited to 100 lines. This is especially helpful when debugging.",
            (
                _SCRIPT,
                Argument("start_line_number", "a valid line number", Kind.LINE),
                Argument("end_line_number", "a valid line number", Kind.LINE),
            ),
            "The observation will be the content of the script between start_line_number and end_line_number . If the "
            "script does not exist, the observation will be an error message.",
            inspect_script_lines,
        ),
        ActionSpec(
            "Edit Script (Cell)",
            "Use this to replace the body of one cell of a python script, and to run the result. A cell is everything "
            "from the line after its header, such as `# %% model`, up to the next header.",
            (_SCRIPT, Argument("cell", "the name of the cell, as in its header")),
            _EDITED,
            edit_cell,
            block="the new body of the cell",
        ),
        ActionSpec(
            "Edit Script (Lines)",
            "Use this to replace a range of lines of a python script, and to run the result.",
            (
                _SCRIPT,
                Argument("start_line_number", "the first line to replace", Kind.LINE),
                Argument("end_line_number", "the last line to replace", Kind.LINE),
            ),
            _EDITED,
            edit_lines,
            block="the new lines",
        ),
        ActionSpec(
            "Edit Script (Patch)",
            "Use this to replace passages of a python script, and to run the result. Each passage to find must match "
            "whole lines at exactly one place.",
            (_SCRIPT,),
            _EDITED,
            edit_patch,
            block="blocks of <<<<<<< SEARCH, the lines to find, =======, the lines to put there, >>>>>>> REPLACE",
        ),
        ActionSpec(
            "Edit Script (Whole)",
            "Use this to rewrite a whole python script, and to run the result.",
            (_SCRIPT,),
            _EDITED,
            edit_whole,
            block="the whole new script",
        ),
    )
}
