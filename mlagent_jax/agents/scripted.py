"""The scripted expert: works on an embedded task by real steps, without knowing which idea helps.

A trajectory starts from one to three random ideas of the library, and the expert tries them in turn. Some steps only
inspect; some contain a deliberate error (a missing import, an argument that does not exist), which the next step
repairs. Every step is a function of the seed and the state only, so that an interrupted collection takes the same steps
again and finds their outcomes in the queue.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import random
import re
from collections.abc import Mapping

from environments.actions.edits import read_cells
from environments.protocol import OutcomeKind, State, digest
from environments.tasks.generated.ideas import Idea, ideas_for
from environments.tasks.task import TaskSpec
from mlagent_jax.agents.episodes import Reply
from mlagent_jax.settings.stages import CollectConfig

_EDITED_CELL = re.compile(r'"cell": "(\w+)"')


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
      profile: `compact` or `full`; a full reply has the four labels of thought before its action.
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
        """Return the next action from `state`, given the `last` one and how it ended. `last` is not needed where the
        state names a kind of step: the action is of that kind."""
        depth = len(state.history)
        rng = random.Random(f"{self._seed}/{depth}")  # noqa: S311 - reproducible, not secret
        if state.operator:
            return self._of_kind(state, rng)
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

    def _of_kind(self, state: State, rng: random.Random) -> ExpertAction:
        """Return an action of the kind that `state` names, from the state alone."""
        cells = read_cells(state.script)
        if state.operator == "combine":
            others = {name: code for name, code in read_cells(state.other).items() if name in cells}
            if differing := sorted(name for name, code in others.items() if code != cells[name]):
                cell = rng.choice(differing)
                return self._edit(state, Idea("", cell, others[cell]), "I take a cell from the second script.")
        if state.operator == "debug" and (repair := self._repair(state, cells)):
            return self._edit(state, repair, "The last edit failed on a slip of mine. I repair it.")
        start = len(state.history) % max(1, len(self._plan))
        ordered = [*self._plan[start:], *self._plan[:start]]
        idea = next((idea for idea in ordered if cells.get(idea.cell) not in (None, idea.code.rstrip())), None)
        if idea is None:
            return ExpertAction(self._reply(state, self._inspections()[0], "No idea fits. I run the script."))
        if rng.random() < self._config.error_rate:
            broken = dataclasses.replace(idea, code=_with_error(idea.code, rng))
            return dataclasses.replace(self._edit(state, broken, f"I try: {idea.text}."), broken=True, intended=idea)
        return self._edit(state, idea, f"I try: {idea.text}.")

    def _repair(self, state: State, cells: Mapping[str, str]) -> Idea | None:
        """Return the idea that the last edit most likely meant: the one whose code is most like the cell that it
        left."""
        edited = _EDITED_CELL.findall(state.history[-1].action) if state.history else []
        meant = [idea for idea in self._plan if edited and idea.cell == edited[-1] and idea.cell in cells]
        return max(
            meant, key=lambda idea: difflib.SequenceMatcher(None, cells[idea.cell], idea.code).ratio(), default=None
        )

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
