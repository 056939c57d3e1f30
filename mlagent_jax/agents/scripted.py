"""The scripted expert: works on an embedded task by real steps, as a person would, and does not know which idea helps.

A trajectory starts from one to three ideas of the library, drawn at random; the expert tries them one after the other,
now and then only looks, now and then slips (a name that is not imported, an argument that does not exist) and repairs
that in its next step. Every step is a function of the seed and the state alone, so that an interrupted collection takes
the same steps again and finds their outcomes in the queue.
"""

from __future__ import annotations

import dataclasses
import json
import random

from environments.protocol import OutcomeKind, State, digest
from environments.tasks.generated.ideas import Idea, ideas_for
from environments.tasks.task import TaskSpec
from mlagent_jax.agents.episodes import Reply
from mlagent_jax.settings.schema import CollectConfig


def cell_edit(script: str, cell: str, code: str) -> str:
    """Action, its input and its block, of an edit of one cell."""
    arguments = json.dumps({"script_name": script, "cell": cell})
    return f"Action: Edit Script (Cell)\nAction Input: {arguments}\n```python\n{code.rstrip()}\n```"


def plain_action(name: str, **arguments: str) -> str:
    """Action and its input, of an action that is not an edit."""
    return f"Action: {name}\nAction Input: {json.dumps(arguments)}"


@dataclasses.dataclass(frozen=True)
class Move(Reply):
    """What the expert does next."""

    slip: bool = False
    """The edit holds a deliberate mistake: kept as history for the repair that follows, never as a target."""
    intended: Idea | None = None
    """The idea that the edit tries."""


class ScriptedExpert:
    """One trajectory's expert.

    Args:
      spec: the task.
      script: its starting script.
      config: rates and numbers.
      profile: `compact` or `full`; a full reply carries the four labels of thought before its action.
      seed: of this trajectory.
      library: what it draws ideas from; default: all of the built-in ones that suit the task.
      habit: seed of its favourites, where its prompt carries no ideas: the library in an order of its own, the same in
        every task and trajectory, of which the r-th is reached for in proportion to 1 / r^2. None: ideas are drawn.
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

    def propose(self, state: State, last: Move | None, last_kind: OutcomeKind | None) -> Move:
        """The next move from `state`, `last` and how it ended."""
        depth = len(state.history)
        rng = random.Random(f"{self._seed}/{depth}")  # noqa: S311 - reproducible, not secret
        if last is not None and last.slip and last.intended and last_kind is not OutcomeKind.INFRASTRUCTURE_ERROR:
            return self._edit(state, last.intended, "The last edit failed on a slip of mine. I repair it.")
        if rng.random() < self._config.look_rate or not self._plan:  # No idea fits a script without our cells.
            return Move(self._reply(state, rng.choice(self._looks()), "I look before I change anything else."))
        idea = self._plan[depth % len(self._plan)]
        if rng.random() < self._config.error_rate:
            slipped = dataclasses.replace(idea, code=_slip(idea.code, rng))
            return dataclasses.replace(self._edit(state, slipped, f"I try: {idea.text}."), slip=True, intended=idea)
        return self._edit(state, idea, f"I try: {idea.text}.")

    def _edit(self, state: State, idea: Idea, thought: str) -> Move:
        return Move(self._reply(state, cell_edit(self._spec.entry, idea.cell, idea.code), thought), intended=idea)

    def _looks(self) -> tuple[str, ...]:
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
    """The library in the order in which one trajectory reaches for it, drawn without replacement."""
    left = sorted(library, key=lambda idea: digest([habit, idea.text]))
    weights = [1 / rank**2 for rank in range(1, len(left) + 1)]
    drawn = []
    while left:
        place = rng.choices(range(len(left)), weights)[0]
        drawn.append(left.pop(place))
        weights.pop(place)
    return drawn


def _slip(code: str, rng: random.Random) -> str:
    """A mistake that people make: a lost import, a lost bracket, a misspelt argument."""
    lines = code.rstrip().splitlines()
    imports = [i for i, line in enumerate(lines) if line.startswith(("from ", "import "))]
    slips = []
    if imports and len(lines) > len(imports):
        slips.append("\n".join(line for i, line in enumerate(lines) if i not in imports))
    if code.rstrip().endswith(")"):
        slips.append(code.rstrip()[:-1])
    if "=" in lines[-1] and "(" in lines[-1]:
        head, _, tail = lines[-1].rpartition("(")
        slips.append(
            "\n".join([*lines[:-1], f"{head}(n={1 + rng.randrange(9)}, {tail}" if tail != ")" else f"{head}(n=1)"])
        )
    return rng.choice(slips) if slips else code.rstrip() + ")"
