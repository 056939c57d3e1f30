"""The scripted expert: works on an embedded task by real steps, without knowing which idea helps.

A trajectory starts from one to three random ideas of the library, and the expert tries them in turn. Some steps only
inspect; some contain a deliberate error (a missing import, an argument that does not exist), which the next step
repairs. In the profile `medium` edits are free (`free_edits`): one change has several forms, some errors are edits that
do not apply, and an edit after which the printed score is worse may be undone. Every step is a function of the seed and
the state only, so that an interrupted collection takes the same steps again and finds their outcomes in the queue.
"""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

from environments.actions import Action
from environments.protocol import OutcomeKind, State, digest
from environments.tasks.generated.ideas import Idea, ideas_for
from environments.tasks.task import TaskSpec
from mlagent_jax.agents import free_edits
from mlagent_jax.agents.episodes import Reply
from mlagent_jax.settings.stages import CollectConfig

UNDO_RATE = 0.2
"""Fraction of broken scripts that are undone instead of repaired, in the profile `medium`."""
UNDO_WORSE_RATE = 0.5
"""Fraction of edits with a worse printed score that are undone, in the profile `medium`."""
MISQUOTE_RATE = 0.4
"""Fraction of deliberate errors that are edits which do not apply, in the profile `medium`."""


def cell_edit(script: str, cell: str, code: str) -> str:
    """Return the text of an action that edits one cell: name, input and code block."""
    arguments = json.dumps({"script_name": script, "cell": cell})
    return f"Action: Edit Script (Cell)\nAction Input: {arguments}\n```python\n{code.rstrip()}\n```"


def plain_action(name: str, **arguments: str) -> str:
    """Return the text of an action that is not an edit: name and input."""
    return f"Action: {name}\nAction Input: {json.dumps(arguments)}"


@dataclasses.dataclass(frozen=True)
class ExpertAction(Reply):
    """Next action of the expert."""

    broken: bool = False
    """Whether the edit contains a deliberate error: kept as history for the repair that follows, never as a target."""
    intended: Idea | None = None
    """Idea that the edit tries."""


class ScriptedExpert:
    """Expert of one trajectory.

    Args:
      spec: The task.
      script: Its starting script.
      config: Rates and numbers.
      profile: `compact`, `medium` or `full`; a full reply has the four labels of thought before its action.
      seed: Seed of this trajectory.
      library: Ideas to draw from; default: all built-in ones for the task.
      habit: Seed of a preference order, for prompts without ideas: one order of the library for every task and
        trajectory, whose r-th idea is chosen with weight 1 / r^2. None: ideas are drawn uniformly.
    """

    def __init__(
        self,
        spec: TaskSpec,
        script: str,
        config: CollectConfig,
        profile: str,
        seed: str,
        library: tuple[Idea, ...] | None = None,
        habit: str | None = None,
    ) -> None:
        self._spec, self._config, self._profile, self._seed = spec, config, profile, seed
        rng = random.Random(f"{seed}/ideas")  # noqa: S311 - reproducible, not secret
        library = ideas_for(spec, script) if library is None else library
        if habit is not None:
            self._plan, self.ideas = _favourites(library, habit, rng), ()
            return
        count = rng.randint(config.min_ideas, config.max_ideas)
        # Ideas for different cells first: two ideas for one cell would replace each other.
        cells: dict[str, Idea] = {}
        for idea in rng.sample(library, len(library)):
            cells.setdefault(idea.cell, idea)
        chosen = list(cells.values())[:count]
        self._plan = chosen + [idea for idea in rng.sample(library, len(library)) if idea not in chosen]
        self.ideas: tuple[str, ...] = tuple(idea.text for idea in chosen)

    def propose(self, state: State, last: ExpertAction | None, last_kind: OutcomeKind | None) -> ExpertAction:
        """Return the next action from `state`, given the `last` one and how it ended."""
        if self._profile == "medium":
            return self._propose_freely(state, last, last_kind)
        depth = len(state.history)
        rng = random.Random(f"{self._seed}/{depth}")  # noqa: S311 - reproducible, not secret
        if last is not None and last.broken and last.intended and last_kind is not OutcomeKind.INFRASTRUCTURE_ERROR:
            return self._edit(state, last.intended, "The last edit failed on a slip of mine. I repair it.")
        if rng.random() < self._config.look_rate or not self._plan:  # no idea fits a script without our cells
            return ExpertAction(
                self._reply(state, rng.choice(self._inspections()), "I look before I change anything else.")
            )
        idea = self._plan[depth % len(self._plan)]
        if rng.random() < self._config.error_rate:
            edited = dataclasses.replace(idea, code=_with_error(idea.code, rng))
            return dataclasses.replace(self._edit(state, edited, f"I try: {idea.text}."), broken=True, intended=idea)
        return self._edit(state, idea, f"I try: {idea.text}.")

    def _propose_freely(self, state: State, last: ExpertAction | None, last_kind: OutcomeKind | None) -> ExpertAction:
        """Return the next action as a person would write it, with a thought before it."""
        depth, entry = len(state.history), self._spec.entry
        rng = random.Random(f"{self._seed}/{depth}")  # noqa: S311 - reproducible, not secret

        def said(kind: str, action: Action, **more: Any) -> ExpertAction:
            thought = free_edits.thought(kind, state, rng, more.get("intended"))
            return ExpertAction(f"Thought: {thought}\n{action.render()}", **more)

        undo = Action("Undo Edit Script", {"script_name": entry})
        if last is not None and last.broken and last.intended and last_kind is not OutcomeKind.INFRASTRUCTURE_ERROR:
            if last_kind is OutcomeKind.SCRIPT_ERROR and rng.random() < UNDO_RATE:
                return said("undo", undo)
            mended = free_edits.edit(entry, state.script, last.intended.cell, last.intended.code, rng)
            return said("quote" if last_kind is OutcomeKind.INVALID_ACTION else "mend", mended, intended=last.intended)
        was_scored = last is not None and last.intended and last_kind is OutcomeKind.SCORED
        if was_scored and free_edits.is_worse(state, self._spec.higher_is_better) and rng.random() < UNDO_WORSE_RATE:
            return said("worse", undo)
        if rng.random() < self._config.look_rate or not self._plan:
            return said("look", Action("Execute Script", {"script_name": entry}))
        idea = self._plan[depth % len(self._plan)]
        right = free_edits.edit(entry, state.script, idea.cell, idea.code, rng)
        if rng.random() < self._config.error_rate:
            wrong = free_edits.misquoted(right, rng) if rng.random() < MISQUOTE_RATE else None
            code = _with_error(idea.code, rng)
            wrong = wrong or free_edits.edit(entry, state.script, idea.cell, code, rng)
            return said("try", wrong, broken=True, intended=idea)
        return said("try", right, intended=idea)

    def _edit(self, state: State, idea: Idea, thought: str) -> ExpertAction:
        return ExpertAction(
            self._reply(state, cell_edit(self._spec.entry, idea.cell, idea.code), thought), intended=idea
        )

    def _inspections(self) -> tuple[str, ...]:
        return (
            plain_action("Execute Script", script_name=self._spec.entry),
            plain_action("List Files", dir_path="."),
        )

    def _reply(self, state: State, action: str, thought: str) -> str:
        if self._profile == "compact":
            return action
        seen = state.history[-1].observation.strip() if state.history else "Nothing has been run yet."
        tried = len(state.history)
        return (
            f"Reflection: {seen.splitlines()[-1] if seen else 'The last step printed nothing.'}\n"
            f"Research Plan and Status: Try the ideas one after the other and keep what helps; {tried} steps taken.\n"
            "Fact Check: What the last observation printed is confirmed; whether the next edit helps is not.\n"
            f"Thought: {thought}\n{action}"
        )


def _favourites(library: tuple[Idea, ...], habit: str, rng: random.Random) -> list[Idea]:
    """Return the library in the order in which one trajectory tries it, drawn without replacement."""
    left = sorted(library, key=lambda idea: digest([habit, idea.text]))
    weights = [1 / rank**2 for rank in range(1, len(left) + 1)]
    drawn = []
    while left:
        place = rng.choices(range(len(left)), weights)[0]
        drawn.append(left.pop(place))
        weights.pop(place)
    return drawn


def _with_error(code: str, rng: random.Random) -> str:
    """Return the code with a typical mistake: a missing import, a missing bracket, a wrong argument."""
    lines = code.rstrip().splitlines()
    imports = [i for i, line in enumerate(lines) if line.startswith(("from ", "import "))]
    mistakes = []
    if imports and len(lines) > len(imports):
        mistakes.append("\n".join(line for i, line in enumerate(lines) if i not in imports))
    if code.rstrip().endswith(")"):
        mistakes.append(code.rstrip()[:-1])
    if "=" in lines[-1] and "(" in lines[-1]:
        head, _, tail = lines[-1].rpartition("(")
        mistakes.append(
            "\n".join([*lines[:-1], f"{head}(n={1 + rng.randrange(9)}, {tail}" if tail != ")" else f"{head}(n=1)"])
        )
    return rng.choice(mistakes) if mistakes else code.rstrip() + ")"
