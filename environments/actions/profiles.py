"""Profiles of the reply format, and the prompt text that describes it, made from the actions as data.

The profiles differ in the labels that a reply must carry, in the actions that the prompt lists and in the length of
observations. `full` is MLAgentBench's. `medium` is for a pretrained model with a short context: a thought and free
edits. `compact` is for a small policy trained from scratch, which reads no list of actions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from environments.actions.vocabulary import ACTIONS, ActionSpec, Kind

_LABEL_HELP = {
    "Reflection": "What does the observation mean? If there is an error, what caused the error and how to debug?",
    "Research Plan and Status": "The full high level research plan, with current status and confirmed results of each "
    "step briefly annotated. It must only include progress that has been made by previous steps. If there is any "
    "update, enclose the new update text in double asterisks **like this**. If there is no update, just copy the "
    "previous step Research Plan and Status. The high level plan from the previous step should be fully retained, "
    "unless it is intentionally revised.",
    "Fact Check": "List all objective statements in the updates to Research Plan and Status one by one and point out "
    "whether it is guessed versus directly confirmed by the previous observation directly above. Performance numbers "
    "can only be confirmed by running the code and observing the output.",
    "Thought": "What you are currently doing, what actions to perform and why",
    "Action": "the action to take, should be one of the names of the tools",
    "Action Input": "the input to the action as a valid JSON string",
}
LABELS = tuple(_LABEL_HELP)


@dataclasses.dataclass(frozen=True)
class Profile:
    """A variant of the grammar."""

    name: str
    labels: tuple[str, ...]
    """Labels that a reply must carry."""
    brief: bool
    """Whether an observation is only the last lines of the output; otherwise it has all output and the action's answer.
    """
    observation_characters: int
    """Maximum length of an observation; head and tail are kept (brief: the tail)."""
    optional: tuple[str, ...] = ()
    """Labels that the prompt asks for and a reply may leave out."""
    listed: tuple[str, ...] = ()
    """Names of the actions that the prompt lists. Empty: all. Others can be executed all the same."""


PROFILES = {
    "full": Profile("full", LABELS, brief=False, observation_characters=5000),
    "medium": Profile(
        "medium",
        LABELS[-3:],
        brief=True,
        observation_characters=300,
        optional=("Thought",),
        listed=(
            *("Edit Script (Patch)", "Edit Script (Cell)", "Edit Script (Whole)"),
            *("Undo Edit Script", "Execute Script", "Final Answer"),
        ),
    ),
    "compact": Profile("compact", LABELS[-2:], brief=True, observation_characters=200),
}


def profile(name: str | Profile) -> Profile:
    """Return the profile called `name`; a profile is returned unchanged.

    Raises:
      ValueError: no such profile.
    """
    if isinstance(name, Profile):
        return name
    if name not in PROFILES:
        raise ValueError(f"profile is {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def example_input(spec: ActionSpec) -> str:
    """Return what an Action Input of `spec` looks like."""
    entries = (f'"{one.name}": {"1" if one.kind is Kind.LINE else chr(34) + "..." + chr(34)}' for one in spec.arguments)
    return f"It looks like {{{', '.join(entries)}}}."


def usage_message(spec: ActionSpec) -> str:
    """Return MLAgentBench's answer to a wrong Action Input."""
    usage = ",\n            ".join(f"{argument.name}: [{argument.help}]" for argument in spec.arguments)
    return (
        f"The action input for {spec.name} needs to be a valid json with proper entries. You may have missed the comma "
        f"between entries. Please use the correct format and try again:\n{{\n            {usage}\n}}"
    )


def describe_actions(form: str | Profile, actions: Mapping[str, ActionSpec] = ACTIONS) -> str:
    """Describe the offered actions, in the style of the profile's prompt."""
    form = profile(form)
    listed = [spec for spec in actions.values() if not form.listed or spec.assisted or spec.name in form.listed]
    return "".join(map(_describe_briefly if form.brief else _describe, (spec for spec in listed if spec.shown)))


def describe_format(form: str | Profile) -> str:
    """Describe the labels of a reply, as MLAgentBench's prompt does."""
    return "\n".join(f"{label}: {_LABEL_HELP[label]}" for label in profile(form).labels)


def _describe(spec: ActionSpec) -> str:
    """Format one action as MLAgentBench's `construct_tool_prompt` does."""
    indent = " " * 8
    usage = f",\n{indent}    ".join(f'"{argument.name}": [{argument.help}]' for argument in spec.arguments)
    lines = [
        f"- {spec.name}:",
        f"{indent}{spec.help}",
        f"{indent}Usage:",
        f"{indent}```",
        f"{indent}Action: {spec.name}",
        f"{indent}Action Input: {{",
        f"{indent}    {usage}",
        f"{indent}}}",
    ]
    if spec.block is not None:
        lines.append(f"{indent}[a line ```python, then {spec.block}, then a line ```]")
    lines += [f"{indent}Observation: [{spec.returns}]", f"{indent}```"]
    return "\n".join(lines) + "\n\n"


def _describe_briefly(spec: ActionSpec) -> str:
    names = ", ".join(f'"{argument.name}"' for argument in spec.arguments)
    block = "" if spec.block is None else f" + ```python block: {spec.block}"
    return f"- {spec.name} {{{names}}}{block}\n"
