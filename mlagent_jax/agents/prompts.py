"""Renderer of states as prompt tokens, for SFT, sampling, evaluation and serving.

Three profiles. `compact` fits a small policy: the task's traits, the current script, one line per past step. `medium`
is for a pretrained model with a short context: the problem, the script, the last results with their thoughts, the
format; about 450 tokens for an embedded task. `full` is MLAgentBench's: the research problem, the actions, and the last
steps as action and observation.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from environments.actions import ACTIONS, ASSISTED_ACTIONS, ActionSpec, describe_actions, describe_format, fenced
from environments.actions.grammar import COMPACT_WORDS
from environments.protocol import State, Step
from environments.tasks.task import TaskSpec
from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.settings.policy import PromptConfig

_TASK, _IDEAS, _SCRIPT, _RESULTS, _NEXT = COMPACT_WORDS
_CELL = re.compile(r'"cell": "(\w+)"')
_THOUGHT = re.compile(r"^Thought: *(.+?) *$", re.MULTILINE)
_MAX_THOUGHT = 120
"""Maximum characters of a past step's thought in a medium prompt."""
_MEDIUM_FORMAT = """Improve the script by one action. Reply in this form:
Thought: why you take this step
Action: Edit Script (Patch)
Action Input: {"script_name": "ENTRY"}
```python
<<<<<<< SEARCH
lines of the script, copied exactly
=======
the lines to put there
>>>>>>> REPLACE
```
"""
_ACTION = re.compile(r"^Action: *(.+?) *$", re.MULTILINE)


class PromptTooLongError(ValueError):
    """The task and the last observation alone exceed the limit; nothing may be cut from them."""


class Renderer:
    """Renders states of known tasks.

    Args:
      tokenizer: The policy's tokenizer.
      config: Profile and limits.
      specs: Task specs, by the key `name@digest`.
    """

    def __init__(self, tokenizer: Tokenizer, config: PromptConfig, specs: Mapping[str, TaskSpec]) -> None:
        self.tokenizer, self.config, self.specs = tokenizer, config, specs

    def text(self, state: State) -> str:
        """Return the prompt of `state`, before it is cut to `max_prompt_tokens`."""
        return prompt_text(self.config, self.specs[state.task], state)

    def encode(self, state: State) -> list[int]:
        """Return prompt tokens, at most `max_prompt_tokens`: the oldest steps are dropped first, the task and the last
        step never.

        Raises:
          PromptTooLongError: The prompt is still too long.
        """
        limit = self.config.max_prompt_tokens
        fewest = min(1, len(state.history))
        for shown in range(min(self.config.history_steps, len(state.history)), fewest - 1, -1):
            recent = dataclasses.replace(state, history=state.history[len(state.history) - shown :])
            tokens = self._tokens(self.text(recent))
            if len(tokens) <= limit:
                return tokens
        raise PromptTooLongError(
            f"the prompt of a state of {state.task_name} takes {len(tokens)} tokens without any old step; "
            f"config.prompt.max_prompt_tokens is {limit}: raise it"
        )

    def fits(self, state: State) -> bool:
        """Return whether `encode` succeeds; a state that does not fit cannot be acted on."""
        try:
            self.encode(state)
        except PromptTooLongError:
            return False
        return True

    def encode_action(self, action: str) -> list[int]:
        """Return tokens of an action, including end of text. The action is encoded separately from the prompt, as in
        sampling."""
        return [*self.tokenizer.encode(action), self.tokenizer.eos_id]

    def decode_action(self, tokens: list[int]) -> str:
        """Return the text of a sampled action, without the token that ended it."""
        end = len(tokens) - (bool(tokens) and tokens[-1] in self.tokenizer.stop_ids)
        return self.tokenizer.decode(tokens[:end])

    def _tokens(self, text: str) -> list[int]:
        if self.tokenizer.has_chat_template:
            return self.tokenizer.apply_chat_template([{"role": "user", "content": text}])
        return self.tokenizer.encode(text)


def prompt_text(config: PromptConfig, spec: TaskSpec, state: State) -> str:
    """Return the prompt of `state` as text, with the last `config.history_steps` steps of its history."""
    steps = state.history[max(0, len(state.history) - config.history_steps) :]
    if config.profile == "compact":
        return _compact(spec, state, steps)
    if config.profile == "medium":
        return _medium(spec, state, steps)
    return _full(spec, state, steps, ACTIONS | ASSISTED_ACTIONS if config.editor else ACTIONS)


def direction(spec: TaskSpec) -> str:
    """Return `up` if a higher metric is better, else `down`."""
    return "up" if spec.higher_is_better else "down"


def _compact(spec: TaskSpec, state: State, steps: tuple[Step, ...]) -> str:
    sections = [f"{_TASK}{spec.traits}; {spec.metric} {direction(spec)}\n"]
    if state.ideas:
        sections.append(f"{_IDEAS}{'; '.join(state.ideas)}\n")
    sections.append(f"{_SCRIPT}{state.script.rstrip()}\n")
    if steps:
        sections.append(_RESULTS + "".join(f"{step_label(step)}: {step.observation.strip()}\n" for step in steps))
    sections.append(_NEXT)
    return "".join(sections)


def _medium(spec: TaskSpec, state: State, steps: tuple[Step, ...]) -> str:
    better = "higher" if spec.higher_is_better else "lower"
    sections = [
        f"{_TASK}{spec.description.strip()}\n",
        f"The data: {spec.traits}. The metric: {spec.metric}, {better} is better. After each edit {spec.entry} is run "
        f"and the {spec.submission} that it writes is scored.\n\n",
        f"{_SCRIPT}{fenced(state.script.rstrip())}\n\n",
    ]
    if state.ideas:
        sections.append(f"{_IDEAS}{'; '.join(state.ideas)}\n\n")
    if steps:
        sections.append(_RESULTS + "".join(f"- {_told(step)}\n" for step in steps) + "\n")
    sections.append(f"Actions:\n{describe_actions('medium')}\n{_MEDIUM_FORMAT.replace('ENTRY', spec.entry)}")
    return "".join(sections)


def _told(step: Step) -> str:
    """Return a past step in a line: its thought, its label, and what was observed."""
    thoughts = _THOUGHT.findall(step.action)
    thought = f"{thoughts[-1][:_MAX_THOUGHT]} " if thoughts else ""
    return f"{thought}({step_label(step)}) -> {step.observation.strip()}"


def step_label(step: Step) -> str:
    """Return a short label of a step: the cell that it edited, or the name of its action."""
    cell = _CELL.search(step.action)
    if cell:
        return cell.group(1)
    action = _ACTION.findall(step.action)
    return action[-1][:30] if action else "no action"


def _full(spec: TaskSpec, state: State, steps: tuple[Step, ...], offered: Mapping[str, ActionSpec]) -> str:
    sections = [
        "You are a helpful research assistant. You work on the research problem below, one action at a time.\n\n",
        f"Research Problem: {spec.description.strip()}\n\n",
        f"The metric is {spec.metric}; {'higher' if direction(spec) == 'up' else 'lower'} is better. The script that "
        f"is run and scored is {spec.entry}; it writes {spec.submission}.\n\n",
        f"You have access to the following tools:\n{describe_actions('full', offered)}\n\n",
        f"Always respond in this format exactly:\n{describe_format('full')}\n\n",
    ]
    if state.ideas:
        sections.append("Ideas worth trying:\n" + "".join(f"- {idea}\n" for idea in state.ideas) + "\n")
    for step in steps:
        sections.append(f"{step.action.strip()}\nObservation:\n```\n{step.observation.strip()}\n```\n\n")
    sections.append("Your next step:\n")
    return "".join(sections)
