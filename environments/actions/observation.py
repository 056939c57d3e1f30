"""The agent's view of a step: cleaned, cut, and free of anything computed from a hidden label.

A script's output is hostile text. It is shown without terminal codes and control characters. A line that looks like
part of the protocol (a label of a reply, a fence, a token of a chat template) is quoted.
"""

from __future__ import annotations

import re
import signal
import unicodedata

from environments.actions.errors import ActionError
from environments.actions.grammar import COMPACT_WORDS, LABELS, STOP, Profile
from environments.protocol import Limits
from environments.sandbox.base import Ending, Execution

BRIEF_LINES = 3
"""Lines of output in a brief observation."""
# ECMA-48: control sequences, operating system commands up to their terminator, and two-character escapes.
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?")
_MARKER = re.compile(rf"(?im)^([^\S\n]*)((?:{'|'.join(LABELS)}|{STOP[:-1]})[^\S\n]*:|`{{3,}})")
_SECTION = re.compile(rf"({'|'.join(word.rstrip().rstrip(':') for word in COMPACT_WORDS)}):")
"""Section headings, matched anywhere in a line because each is one token wherever it occurs."""


def sanitise(text: str) -> str:
    """Remove terminal codes and control characters, normalise line ends to `\\n`, and quote forged markers.

    A line that was overwritten with carriage returns, as by progress bars, keeps its last state.
    """
    text = _ANSI.sub("", text)
    text = re.sub(r"[\x0b\x0c\x85\u2028\u2029]", "\n", text.replace("\r\n", "\n"))
    if "\r" in text:
        text = "\n".join(map(_last_state, text.split("\n")))
    if not text.isascii() or any(character < " " for character in set(text) - {"\n", "\t"}) or "\x7f" in text:
        # Cc control, Cf format (bidirectional overrides, zero width), Cs lone surrogates.
        text = "".join(
            character
            for character in text
            if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        )
    return _SECTION.sub(r"\1 :", _MARKER.sub(r"\1> \2", text).replace("<|", "< |"))


def _last_state(line: str) -> str:
    return next((state for state in reversed(line.split("\r")) if state.strip()), "")


def cut(text: str, limit: int) -> str:
    """Cut `text` to `limit` characters: head, number of omitted characters, tail.

    Text from inside a line never ends up at the start of one, so clean text stays clean.
    """
    if len(text) <= limit:
        return text
    note = f"\n... [{len(text)} characters, the middle is left out] ..."
    if limit < 4 * len(note):
        note = " ..."
    kept = limit - len(note) - 1
    tail = len(text) - kept // 2
    return text[: kept - kept // 2] + note + ("\n" if text[tail - 1] == "\n" else " ") + text[tail:]


def of_text(message: str, profile: Profile) -> str:
    """Return the observation of a step without execution."""
    return cut(sanitise(message), profile.observation_characters)


def of_error(error: ActionError, profile: Profile) -> str:
    """Return the observation of an invalid action: one line, or MLAgentBench's full message."""
    return of_text(f"EnvError: {error.reason}" if profile.brief else error.message, profile)


def of_execution(message: str, execution: Execution, problem: str, limits: Limits, profile: Profile) -> str:
    """Return the observation of a step with an execution.

    Output is selected as in MLAgentBench: standard error alone if a script failed, else standard output, else standard
    error. If standard error does not tell why a script failed, both are shown, with how it ended.

    Args:
      message: answer of the action (a diff), omitted from a brief observation.
      execution: how the script ended, and its output.
      problem: why the submission of a successful script was not accepted, or empty.
    """
    failed = execution.ending is not Ending.EXITED or execution.exit_code != 0
    output = execution.stdout or execution.stderr
    if failed:
        problem = _ending(execution, limits)
        both = (execution.stdout.rstrip("\n"), execution.stderr) if problem else (execution.stderr,)
        output = "\n".join(filter(None, both))
    problem = f"EnvError: {problem}" if problem else ""
    if profile.brief:
        lines = [line.rstrip() for line in sanitise(output).split("\n") if line.strip()]
        lines = lines[-1:] if failed else [] if problem else lines[-BRIEF_LINES:]
        lines += [sanitise(problem)] if problem else []
        return _tail("\n".join(lines), profile.observation_characters)
    ended = f"\n{problem}" if problem else ""
    text = f"{message}The script has been executed. Here is the output:\n{output}{ended}"
    return cut(sanitise(text), profile.observation_characters)


def _ending(execution: Execution, limits: Limits) -> str:
    """Describe how a script failed, or return an empty string if its standard error tells, as after an exception."""
    if execution.ending is not Ending.EXITED:
        return {
            Ending.TIME_LIMIT: f"the script was stopped: it used up its {limits.cpu_seconds:g} s of CPU time, "
            f"or {limits.wall_seconds:g} s in all.",
            Ending.MEMORY_LIMIT: f"the script was stopped: it used more than {limits.memory_mb} MB of memory.",
            Ending.OTHER_LIMIT: "the script was stopped: too many processes or files, or too much written.",
        }[execution.ending]
    code = execution.exit_code or 0
    if code == 1 and execution.stderr.strip():
        return ""
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"the script was ended by the signal {names.get(-code, -code)}."
    return f"the script ended with exit code {code}."


def _tail(text: str, limit: int) -> str:
    return text if len(text) <= limit else "..." + text[len(text) - limit + 3 :]
