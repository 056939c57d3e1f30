"""Display of a search: a live tree in a terminal, or one plain line per step in a log."""

from __future__ import annotations

import time
from typing import Self

from rich import tree as rich_tree
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from environments.interfaces.terminal import printable
from mlagent_jax.agents.prompts import step_label
from mlagent_jax.search.budget import Budget
from mlagent_jax.search.tree import Node, Tree, totals

INTERVAL_SECONDS = 0.5
SHOWN = 24
"""Maximum nodes of the live tree: the best ones, those in work, and their ancestors."""
_COLOURS = {"scored": "green", "pending": "cyan", "script_error": "red", "time_limit": "red", "memory_limit": "red"}


class Display:
    """Shows a search while it runs.

    Args:
      console: Console to print to.
      budget: The search's budget.
      metric: Name of the task's metric.
    """

    def __init__(self, console: Console, budget: Budget, metric: str) -> None:
        self._console, self._budget, self._metric = console, budget, metric
        live = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False, transient=True) if live else None
        self._shown = float("-inf")

    def show(self, tree: Tree, finished: list[Node]) -> None:
        """Show the tree; `finished` are the steps that have just ended."""
        if self._live is None:
            for node in finished:
                # One line per step, whatever its length.
                self._console.print(self.line(tree, node), markup=False, highlight=False, soft_wrap=True)
        elif finished or time.monotonic() - self._shown >= INTERVAL_SECONDS:
            self._shown = time.monotonic()
            self._live.update(Group(Text(self._head(tree)), drawn(tree)), refresh=True)

    def line(self, tree: Tree, node: Node) -> str:
        """Return a line with one step, the best score so far, and the used budget."""
        return f"{label(tree, node)}  best {tree.best().metric:.5g}  {self._budget.show(totals(tree, time.time()))}"

    def _head(self, tree: Tree) -> str:
        best = tree.best()
        used = self._budget.show(totals(tree, time.time()))
        return f"{self._metric}: start {tree.root.metric:.5g}, best {best.metric:.5g} (node {best.number})  {used}"

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def label(tree: Tree, node: Node) -> str:
    """Return a line about one node: number, operator, parents, edit and outcome."""
    if node.plan is None:
        return f"start {node.metric:.5g}"
    parents = " and ".join(map(str, node.plan.parents))
    edit = step_label(node.state.history[-1]) if node.result is not None and node.state.history else ""
    ended = "in work" if node.pending else node.kind.replace("_", " ")
    if node.metric is not None:
        ended = f"{node.metric:.5g} ({tree.gain(node):+.3f} gaps)"
    return printable(f"{node.number} {node.operator} of {parents}{f', {edit}' if edit else ''}: {ended}")


def drawn(tree: Tree) -> rich_tree.Tree:
    """Return the part of the tree that fits a terminal, at most `SHOWN` nodes."""
    best = tree.best()
    wanted = [*tree.pending(), *tree.scored(), *tree.finished()[::-1]]
    kept = {0}
    for node in wanted:
        path = {before.number for before in tree.path(node)}
        if len(kept | path) > SHOWN:
            break
        kept |= path

    def grow(node: Node, into: rich_tree.Tree) -> None:
        for child in tree.children(node.number):
            if child.number in kept:
                style = "bold green" if child is best else _COLOURS.get(child.kind, "dim")
                grow(child, into.add(Text(label(tree, child), style=style, no_wrap=True, overflow="ellipsis")))

    root = rich_tree.Tree(Text(label(tree, tree.root)))
    grow(tree.root, root)
    if left := len(tree.nodes) - len(kept):
        root.add(Text(f"... {left} more nodes", style="dim"))
    return root
