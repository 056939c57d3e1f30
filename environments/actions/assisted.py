"""The two actions that call a second language model: `Edit Script (AI)` and `Understand File`.

Names, help, answers and prompts are MLAgentBench's (`high_level_actions.py`), verbatim except for line numbers in the
prompts. The model's answer is untrusted: it becomes the content of a file or an observation, nothing else. An answer
without a readable script is an edit that does not apply: the policy is at fault, because it wrote the instruction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from environments.actions import edits
from environments.actions.errors import ActionError
from environments.actions.files import AgentFiles
from environments.actions.vocabulary import ActionSpec, Argument, Effect, Kind, save_edit

PROMPT_VERSION = 1
"""Version of the prompts: raise it whenever a prompt, or its construction, changes."""
MAX_INSTRUCTION = 10_000
"""Maximum length of an instruction to the model, in characters."""
MAX_EDITED = 100_000
"""Maximum length of a script for the model to edit, in characters."""
SEGMENT = 10_000
"""Maximum characters of a file in one prompt."""
MAX_SEGMENTS = 10

_EDIT_PROMPT = """Given this python script:
```python
{content}
```
Edit the script by following the instruction:
{instruction}
Provide the full code after the edit, making no other changes. Start the python code with "```python".
"""
_SEGMENT_PROMPT = """Given this (partial) file from line {first} to line {last}:
```
{content}
```
Here is a detailed description on what to look for and what should returned: {instruction}
The description should short and also reference critical lines in the script relevant to what is being looked for. \
Only describe what is objectively confirmed by the file content. Do not include guessed numbers. If you cannot find \
the answer to certain parts of the request, you should say "In this segment, I cannot find ...".
"""
_SUMMARY_PROMPT = """Given the relevant observations for each segments of a file, summarize to get a cohesive \
description of the entire file on what to look for and what should returned: {instruction}
{content}
"""
_CODE = re.compile(r"(?ms)^```python[^\n]*\n(.*?)^```[ \t]*$")


def edit_by_model(
    files: AgentFiles, script_name: str, edit_instruction: str, save_name: str, ask: Callable[[str], str]
) -> Effect:
    files.check_writable(save_name)  # Before calling the model.
    _check_instruction("edit_instruction", edit_instruction)
    files.resolve(script_name)
    old = edits.plain(files.read(script_name)) if files.exists(script_name) else ""
    if len(old) > MAX_EDITED:
        raise ActionError(
            f"{script_name} has {len(old)} characters; at most {MAX_EDITED} can be edited by this action."
        )
    answer = ask(_EDIT_PROMPT.format(content=old, instruction=edit_instruction))
    code = _CODE.search(answer.replace("\r\n", "\n"))
    if code is None:
        raise ActionError("the AI's answer to the edit_instruction holds no complete python code: rephrase it.")
    return save_edit(files, save_name, old, code[1].strip("\n") + "\n")


def understand_file(files: AgentFiles, file_name: str, things_to_look_for: str, ask: Callable[[str], str]) -> Effect:
    _check_instruction("things_to_look_for", things_to_look_for)
    text = files.read(file_name)
    if len(text) > SEGMENT * MAX_SEGMENTS:
        raise ActionError(
            f"{file_name} has {len(text)} characters; at most {SEGMENT * MAX_SEGMENTS} can be understood. Use the "
            "Inspect Script Lines action to inspect a part of it."
        )
    descriptions = [
        ask(_SEGMENT_PROMPT.format(first=first, last=last, content=content, instruction=things_to_look_for))
        for first, last, content in _segments(text)
    ]
    if len(descriptions) == 1:
        return Effect(descriptions[0])
    content = "\n\n".join(f"Segment {number}:\n\n{description}" for number, description in enumerate(descriptions))
    return Effect(ask(_SUMMARY_PROMPT.format(content=content, instruction=things_to_look_for)))


def _check_instruction(name: str, text: str) -> None:
    if len(text) > MAX_INSTRUCTION:
        raise ActionError(f"{name} has at most {MAX_INSTRUCTION} characters, this one has {len(text)}.")


def _segments(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield parts of at most `SEGMENT` characters with first and last line (from 1), cut at line ends if possible."""
    start = 0
    while start < len(text) or start == 0:
        end = start + SEGMENT
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        content = text[start:end]
        first = text.count("\n", 0, start) + 1
        yield first, first + content.rstrip("\n").count("\n"), content
        start = end


_FILE_HELP = "a valid file name with relative path to current directory if needed"

ASSISTED_ACTIONS: dict[str, ActionSpec] = {
    spec.name: spec
    for spec in (
        ActionSpec(
            "Understand File",
            "Use this to read the whole file and understand certain aspects. You should provide detailed description "
            "on what to look for and what should be returned. To get a better understanding of the file, you can use "
            "Inspect Script Lines action to inspect specific part of the file.",
            (
                Argument("file_name", _FILE_HELP),
                Argument(
                    "things_to_look_for",
                    "a detailed description on what to look for and what should returned",
                    Kind.TEXT,
                ),
            ),
            "The observation will be a description of relevant content and lines in the file. If the file does not "
            "exist, the observation will be an error message.",
            understand_file,
            assisted=True,
        ),
        ActionSpec(
            "Edit Script (AI)",
            "Use this to do a relatively large but cohesive edit over a python script. Instead of editing the script "
            "directly, you should describe the edit instruction so that another AI can help you do this.",
            (
                Argument(
                    "script_name",
                    "a valid python script name with relative path to current directory if needed. An empty script "
                    "will be created if it does not exist.",
                ),
                Argument("edit_instruction", "a detailed step by step description on how to edit it.", Kind.TEXT),
                Argument("save_name", _FILE_HELP),
            ),
            "The observation will be the diff of the edit, followed by the output of the script that measures it. You "
            "should always double check whether the edit is correct. If it is far from correct, you can use the Undo "
            "Edit Script action to undo the edit.",
            edit_by_model,
            assisted=True,
        ),
    )
}
"""Actions by name, offered in addition to `ACTIONS` if a second model is configured."""
