"""The parser of replies, made from `ACTIONS`, or from a larger set if there is a second language model.

A reply has labels, each at the start of a line; `Action` and `Action Input` (a JSON object) come last. The last
occurrence of a label wins. After an action the stop string `Observation:` ends the reply. An action that takes a block
is followed by one, fenced with backticks:

    Action: Edit Script (Cell)
    Action Input: {"script_name": "train.py", "cell": "model"}
    ```python
    model = SVC(C=10)
    ```

The parser repairs a few unambiguous deviations of language models, and `Action.repairs` names each: thoughts in
`<think>`, which are never parsed, labels in bold or another case, an action's name in another case, a fence around the
reply or the JSON, a comma after the last entry. Everything else is refused with the reason, which says what is right.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from environments.actions.assisted import ASSISTED_ACTIONS
from environments.actions.errors import ActionError
from environments.actions.files import AgentFiles
from environments.actions.profiles import LABELS, Profile, example_input, profile, usage_message
from environments.actions.vocabulary import ACTIONS, ActionSpec, Argument, Effect, Kind

MAX_REPLY = 100_000
"""Maximum length of a reply, in characters."""
STOP = "Observation:"
"""Stop string: the environment writes the text after it."""

COMPACT_WORDS = ("Task: ", "Ideas: ", "Script:\n", "Results:\n", "Next:\n")
"""Section headings of a compact prompt: single tokens in a vocabulary made for it. Elsewhere they are quoted."""
_NAMES = "|".join((*LABELS, STOP[:-1]))
_LABEL_LINE = re.compile(rf"({_NAMES}):(.*)")
_LOOSE_LABEL_LINE = re.compile(rf"[ #]{{0,5}}\*{{0,2}}({_NAMES})\*{{0,2}} ?:(?:\*\*)?(.*)", re.IGNORECASE)
_BY_CASELESS = {label.lower(): label for label in (*LABELS, STOP[:-1])}
_FENCE = re.compile(r"(`{3,})[^`]*")
_THOUGHT = re.compile(r"(?m)^[ \t]*(?:(<think>)|Action Input:)")
_THOUGHT_END = "</think>"
_LONE_THOUGHT_END = re.compile(rf"(?m)^[ \t]*{_THOUGHT_END}|{_THOUGHT_END}[ \t]*$")


@dataclasses.dataclass(frozen=True)
class Action:
    """A parsed action of the right form. Only `apply` shows whether it applies."""

    name: str
    arguments: Mapping[str, Any]
    block: str | None = None
    repairs: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Deviations of the reply from the format that were repaired."""

    @property
    def spec(self) -> ActionSpec:
        return ACTIONS.get(self.name) or ASSISTED_ACTIONS[self.name]

    def apply(self, files: AgentFiles, ask: Callable[[str], str] | None = None) -> Effect:
        """Apply the action to `files`; assisted actions call the second model through `ask`.

        Raises:
          ActionError: the action does not apply; the files are unchanged.
        """
        more: dict[str, Any] = {} if self.block is None else {"block": self.block}
        if self.spec.assisted:
            more["ask"] = ask
        return self.spec.handler(files, **self.arguments, **more)

    def render(self) -> str:
        """Return the compact reply that parses to this action."""
        lines = [f"Action: {self.name}", f"Action Input: {json.dumps(dict(self.arguments), ensure_ascii=False)}"]
        if self.block is not None:
            lines.append(fenced(self.block))
        return "\n".join(lines)


def fenced(text: str) -> str:
    """Return `text` as a block in a fence that no line of it closes."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}python\n{text}\n{fence}"


def parse(reply: str, form: str | Profile, actions: Mapping[str, ActionSpec] = ACTIONS) -> Action:
    """Parse a reply.

    Args:
      reply: text of the reply.
      form: the profile or its name.
      actions: the actions that are offered.

    Raises:
      ActionError: the reply is not in the profile's format, names no action, or has a wrong input.
    """
    if len(reply) > MAX_REPLY:
        raise ActionError(f"a reply has at most {MAX_REPLY} characters, this one has {len(reply)}.")
    if not reply.isascii():
        try:
            reply.encode()
        except UnicodeEncodeError as error:
            raise ActionError("the reply is not valid Unicode text.") from error
    repairs: list[str] = []
    reply = _without_thoughts(reply.replace("\r\n", "\n"), repairs)
    form = profile(form)
    labels = [label for label in form.labels if label not in form.optional]
    read = _sections(reply, _LABEL_LINE)
    if missing := [label for label in labels if label not in read.sections]:
        loose = _sections(reply, _LOOSE_LABEL_LINE)
        if any(label not in loose.sections for label in labels):
            text = "Your response was in incorrect format. Please provide a valid response with all entries: "
            raise ActionError(
                f"the reply has no line {missing[0]}: it ends with a line `Action: NAME` and a line `Action Input: "
                "{JSON}`.",
                text + ", ".join(labels),
            )
        read = loose
        repairs.append("labels in another form")
    spec = _spec(read.sections["Action"].strip(), actions, repairs)
    blocks = read.closed_blocks(spec, repairs)
    raw = read.sections["Action Input"].strip()
    if raw.startswith("`") and raw.endswith("`"):
        raw = raw.strip("`").removeprefix("json").strip()
        repairs.append("fenced input")
    if not raw and blocks:  # Many models put the JSON itself in a fence.
        raw, blocks = blocks[0], blocks[1:]
        repairs.append("fenced input")
    arguments = _arguments(raw, spec, repairs)
    if spec.block is None and blocks:
        raise ActionError(f"{spec.name} takes no fenced block.")
    if spec.block is not None and len(blocks) != 1:
        raise ActionError(
            f"{spec.name} is followed by one fenced block ({spec.block}), found {len(blocks)}: a line ```python, the "
            "text, a line ```."
        )
    return Action(spec.name, arguments, blocks[0] if blocks else None, tuple(repairs))


def _without_thoughts(reply: str, repairs: list[str]) -> str:
    """Remove a reasoning model's thoughts before its action, so that a drafted action in them is ignored.

    If the prompt holds the opening tag, everything before the closing tag is thought, provided an action follows it.
    """
    text, place = reply, 0
    while (match := _THOUGHT.search(text, place)) and match[1]:
        end = text.find(_THOUGHT_END, match.end())
        if end < 0:
            raise ActionError("the thoughts in <think> do not end: the reply was cut off.")
        place = match.start()
        text = text[:place] + text[end + len(_THOUGHT_END) :]
    if match := _LONE_THOUGHT_END.search(text):
        before, after = text[: match.start()], text[match.end() :].lstrip()
        if re.search("^Action:", after, re.MULTILINE) and not _sections(before, _LABEL_LINE).is_open:
            text = after
    if text is not reply:
        repairs.append("thoughts")
    return text


def _spec(name: str, actions: Mapping[str, ActionSpec], repairs: list[str]) -> ActionSpec:
    """Return the action of this name."""
    if name in actions:
        return actions[name]
    caseless = {known.lower(): known for known in actions}
    meant = caseless.get(name.strip("`*\"'").lower())
    if meant is not None:
        repairs.append("name in another form")
        return actions[meant]
    shown = name if len(name) <= 100 else name[:100] + "..."
    near = difflib.get_close_matches(shown.lower(), caseless, n=1)
    listed = ", ".join(known.name for known in actions.values() if known.shown)
    hint = f". Did you mean {caseless[near[0]]}?" if near else f". The actions are: {listed}."
    raise ActionError(
        f"Invalid action: {shown}{hint}",
        f"Invalid action: {shown}. Action did not execute. Please use one of the following actions:\n"
        + ", ".join(actions),
    )


@dataclasses.dataclass
class _SplitReply:
    """A reply split into sections and blocks."""

    sections: dict[str, str]
    """Text by label; the last occurrence wins."""
    blocks: list[str]
    """Fenced blocks that follow the Action Input."""
    is_open: bool
    """Whether the last block is not closed."""
    is_wrapped: bool
    """Whether a fence was open at the Action: the reply itself may be fenced."""

    def closed_blocks(self, spec: ActionSpec, repairs: list[str]) -> list[str]:
        """Return the blocks, without a block opened by mistake by the closing fence of a fenced reply."""
        if not self.is_open:
            return self.blocks
        takes = (spec.block is not None) + (not self.sections["Action Input"].strip())
        if not self.is_wrapped or len(self.blocks) != takes + 1:
            raise ActionError("the fenced block is not closed: the reply was cut off.")
        repairs.append("fenced reply")
        return self.blocks[:-1]


def _sections(reply: str, labels: re.Pattern[str]) -> _SplitReply:
    """Split a reply into sections and blocks.

    Fences count only after an Action Input: a thought may hold code, and even an unclosed fence.
    """
    sections: dict[str, list[str]] = {}
    blocks: list[list[str]] = []
    label, fence, around = "", "", ""
    wrapped = False
    for line in reply.split("\n"):
        if fence:
            if line.startswith(fence) and not line.strip("` \t"):  # At least as many backticks, and nothing else.
                fence = ""
            else:
                blocks[-1].append(line)
        elif match := labels.match(line):
            heading, text = _BY_CASELESS[match[1].lower()], match[2]
            if heading == STOP[:-1]:
                if "Action" in sections:
                    break
                continue  # A line of thought that starts with this word.
            label = heading
            if label == "Action":  # An action needs its own input, never that of an earlier action.
                sections.pop("Action Input", None)
                wrapped = bool(around)
            if label in ("Action", "Action Input"):
                blocks = []
            if label == "Action Input" and (match := _FENCE.fullmatch(text.strip())):
                fence, text = match[1], ""
                blocks.append([])
            sections[label] = [text]
        elif match := _FENCE.fullmatch(line):
            if label == "Action Input":
                fence = match[1]
                blocks.append([])
            else:
                around = "" if around else match[1]
                if label:
                    sections[label].append(line)
        elif label and not (label == "Action Input" and blocks):  # Text after a closed block is not JSON.
            sections[label].append(line)
    texts = {name: "\n".join(lines) for name, lines in sections.items()}
    return _SplitReply(texts, ["\n".join(lines) for lines in blocks], bool(fence), wrapped)


def _arguments(raw: str, spec: ActionSpec, repairs: list[str]) -> dict[str, Any]:
    """Parse and check the Action Input."""
    inner = raw.removesuffix("}").rstrip()
    if raw.endswith("}") and inner.endswith(","):  # JSON allows no comma here, so this removes no text.
        raw = inner[:-1] + "}"
        repairs.append("trailing comma")
    try:
        # Line ends inside strings are accepted, as in MLAgentBench.
        values = json.loads(raw, strict=False, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ActionError(
            f"the Action Input is not valid JSON: {error}. {example_input(spec)}",
            f"ActionInputParsingError: {error}\n{usage_message(spec)}",
        ) from error
    expected = [argument.name for argument in spec.arguments]
    if not isinstance(values, dict) or set(values) != set(expected):
        raise ActionError(
            f"the Action Input of {spec.name} has exactly the entries {', '.join(expected)}. {example_input(spec)}",
            f"EnvError: {usage_message(spec)}",
        )
    return {argument.name: _value(argument, values[argument.name]) for argument in spec.arguments}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an entry occurs twice")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _value(argument: Argument, value: Any) -> Any:
    if argument.kind is Kind.LINE:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
            value = int(value)
        if type(value) is not int or not 0 <= value < 10**9:
            raise ActionError(f"{argument.name} must be an integer, the number of a line.")
        return value
    if not isinstance(value, str):
        raise ActionError(f"{argument.name} must be a string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ActionError(f"{argument.name} is not valid Unicode text.") from error
    return value
