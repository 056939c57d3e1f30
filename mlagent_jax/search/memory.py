"""Memory of a task: the attempts of a search and their outcomes, as lines for the prompt.

The most useful lines come first. A prompt includes the first lines that fit (`prompts.Renderer`) and omits the rest. A
line states in words whether a step improved the score on the half of the labels that the search sees, and quotes the
script's last line of output. It does not contain that score.
"""

from __future__ import annotations

from environments.actions.observation import sanitise
from environments.protocol import OutcomeKind
from mlagent_jax.agents.prompts import step_label
from mlagent_jax.search.tree import Node, Tree

MAX_LINES = 20
_CHARACTERS = 120
"""Maximum characters quoted of an edit, and of an output."""
_ENDS = {
    OutcomeKind.SCRIPT_ERROR: "failed",
    OutcomeKind.TIME_LIMIT: "took too long",
    OutcomeKind.MEMORY_LIMIT: "took too much memory",
    OutcomeKind.INVALID_ACTION: "was no valid action",
}


def memory(tree: Tree) -> tuple[str, ...]:
    """Return at most `MAX_LINES` different lines about the finished edits of the tree.

    Edits that moved the score most come first; in a tie, the newest comes first.
    """
    useful = sorted(
        (node for node in tree.finished() if node.kind != OutcomeKind.INFRASTRUCTURE_ERROR and _is_edit(node)),
        key=lambda node: (round(-_moved(tree, node), 2), -node.number),
    )
    return tuple(dict.fromkeys(_line(tree, node) for node in useful))[:MAX_LINES]


def _is_edit(node: Node) -> bool:
    return node.result.outcome is not None and bool(node.result.outcome.diff)


def _moved(tree: Tree, node: Node) -> float:
    """Return the size of the step's change of the score, in gaps of the task; 0 for a failure."""
    outcome = node.result.outcome
    return abs(outcome.delta or 0.0) / (tree.scale.gap or 1.0)


def _line(tree: Tree, node: Node) -> str:
    outcome = node.result.outcome
    if outcome.kind is OutcomeKind.SCORED:
        moved = outcome.delta
        ended = "better" if moved > tree.scale.noise else "worse" if moved < -tree.scale.noise else "no change"
    else:
        ended = _ENDS.get(outcome.kind, "changed nothing")
    said = _one_line(next(iter(reversed(outcome.observation.strip().splitlines())), ""))
    label = step_label(node.state.history[-1]) if node.state.history else "edit"
    return f"{node.operator}, {label}: {_one_line(_added(outcome.diff))} -> {ended}" + (f" ({said})" if said else "")


def _added(diff: str) -> str:
    """Return the added lines of a diff that are not imports."""
    lines = [line[1:].strip() for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    return "; ".join(line for line in lines if line and not line.startswith(("import ", "from "))) or "; ".join(lines)


def _one_line(text: str) -> str:
    plain = " ".join(sanitise(text).split())
    return plain if len(plain) <= _CHARACTERS else plain[: _CHARACTERS - 4] + " ..."
