"""Strategies by name: pure functions of the tree that plan the next step.

    strategy(tree, rng, *, its parameters) -> Plan, or None if nothing can be planned before a pending step ends

A strategy reads only the tree, pending steps included, and `rng`, which depends only on the seed and the number of the
next node. A search that was killed therefore continues as if it had not been, and several processes may share a tree.
Plugins (`MLAGENT_PLUGINS`) and entry points of the group below register further strategies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Annotated

from environments.registry import Range, Registry
from mlagent_jax.search.tree import STEP, Node, Plan, Tree

Strategy = Callable[..., Plan | None]
"""Function with the signature `strategy(tree, rng, *, its parameters)`."""
STRATEGIES: Registry[Strategy] = Registry("strategy", group="mlagent_jax.strategies")


@STRATEGIES.register
def episodes(
    tree: Tree, rng: random.Random, *, steps: Annotated[int, "Maximum steps of an episode.", Range(1)] = 8
) -> Plan:
    """Independent episodes from the starting script, one after the other, without kinds of steps."""
    del rng
    for attempt in tree.children(0):
        node, depth = attempt, 1
        while children := tree.children(node.number):
            node, depth = children[-1], depth + 1
        outcome = node.result and node.result.outcome
        ended = outcome is None or outcome.final or outcome.reward is None
        if not ended and depth < steps:
            return Plan(STEP, node.number)
    return Plan(STEP, 0)


@STRATEGIES.register
def best_of_n(
    tree: Tree, rng: random.Random, *, n: Annotated[int, "Steps from each state.", Range(1)] = 8
) -> Plan | None:
    """From a state take n steps, go on from the best of them if it is better, else take n more."""
    del rng
    node = tree.root
    while True:
        children = tree.children(node.number)
        whole = bool(children) and len(children) % n == 0
        if whole and any(child.pending for child in children):
            return None
        better = [child for child in children if child.metric is not None and tree.gain(child) > tree.gain(node)]
        if not (whole and better):
            return Plan(STEP, node.number)
        node = max(better, key=lambda child: (tree.gain(child), -child.number))


@STRATEGIES.register
def greedy(
    tree: Tree,
    rng: random.Random,
    *,
    drafts: Annotated[int, "Drafts before anything is improved.", Range(1)] = 5,
    debug: Annotated[float, "Probability of repairing a failed script instead of improving.", Range(0.0, 1.0)] = 0.5,
    debug_depth: Annotated[int, "Maximum failures in a row that are repaired.", Range(1)] = 3,
) -> Plan:
    """AIDE's tree search (Jiang et al. 2025, arXiv 2502.13138): some drafts, then repair a failure or improve the best
    script."""
    if _drafts(tree) < drafts:
        return Plan("draft", 0)
    failed = tree.debuggable(debug_depth)
    if failed and rng.random() < debug:
        return Plan("debug", rng.choice(failed).number)
    best = next((node for node in tree.scored()), tree.root)
    return Plan("improve", tree.tip(best).number)


@STRATEGIES.register
def mcts(
    tree: Tree,
    rng: random.Random,
    *,
    exploration: Annotated[float, "Weight of the exploration term.", Range(0.0)] = 0.35,
    widening: Annotated[
        float, "A node visited v times has at most width * v^widening children.", Range(0.0, 1.0)
    ] = 0.5,
    width: Annotated[float, "See widening.", Range(1.0)] = 1.5,
    critic: Annotated[float, "Weight of the critic's value, if there is a critic.", Range(0.0, 1.0)] = 0.3,
    debug_depth: Annotated[int, "Maximum failures in a row that are repaired.", Range(1)] = 3,
) -> Plan:
    """Monte-Carlo tree search: UCT (Kocsis and Szepesvari 2006) with progressive widening; values are mean scores of
    subtrees, scaled to [0, 1] over the tree."""
    del rng
    values, visits = _values(tree, critic)
    node = tree.root
    while True:
        children = [child for child in tree.children(node.number) if _can_grow(tree, child, debug_depth)]
        allowed = max(1, math.floor(width * visits[node.number] ** widening))
        # A failed script is repaired once; further repairs are children of that repair.
        if (not node.failed and len(tree.children(node.number)) < allowed) or not children:
            break
        total = math.log(visits[node.number])
        node = max(
            children,
            key=lambda child: (
                values[child.number] + exploration * math.sqrt(total / visits[child.number]),
                -child.number,
            ),
        )
    if node.plan is None:
        return Plan("draft", 0)
    return Plan("debug" if node.failed else "improve", node.number)


@STRATEGIES.register
def evolution(
    tree: Tree,
    rng: random.Random,
    *,
    population: Annotated[int, "Best scripts that have descendants; also the number of drafts.", Range(2)] = 6,
    crossover: Annotated[float, "Probability of combining two scripts.", Range(0.0, 1.0)] = 0.3,
    debug: Annotated[float, "Probability of repairing a failed script.", Range(0.0, 1.0)] = 0.25,
    tournament: Annotated[int, "Scripts drawn for each parent; the best of them is taken.", Range(1)] = 2,
    debug_depth: Annotated[int, "Maximum failures in a row that are repaired.", Range(1)] = 2,
) -> Plan:
    """Steady-state evolution: parents by tournament among the best different scripts, changed or combined."""
    if _drafts(tree) < population:
        return Plan("draft", 0)
    failed = tree.debuggable(debug_depth)
    if failed and rng.random() < debug:
        return Plan("debug", rng.choice(failed).number)
    alive = _different(tree.scored())[:population]
    if not alive:
        return Plan("draft", 0)
    first = _tournament(alive, rng, tournament)
    if len(alive) > 1 and rng.random() < crossover:
        second = _tournament([node for node in alive if node is not first], rng, tournament)
        better, worse = sorted((first, second), key=alive.index)
        return Plan("combine", better.number, worse.number)
    return Plan("improve", tree.tip(first).number)


def _drafts(tree: Tree) -> int:
    """Return the number of drafts, pending ones included."""
    return sum(node.operator == "draft" for node in tree)


def _different(nodes: list[Node]) -> list[Node]:
    """Return the first node of each different script, in order."""
    first: dict[str, Node] = {}
    for node in nodes:
        first.setdefault(node.state.script, node)
    return list(first.values())


def _tournament(alive: list[Node], rng: random.Random, size: int) -> Node:
    """Return the best of `size` nodes drawn from `alive`, which is sorted, best first."""
    return alive[min(rng.randrange(len(alive)) for _ in range(size))]


def _can_grow(tree: Tree, node: Node, debug_depth: int) -> bool:
    """Return whether a step can start from the node or one of its descendants."""
    if node.failed:
        below = tree.children(node.number)
        repairable = not below and tree.failures(node) <= debug_depth
        return repairable or any(_can_grow(tree, child, debug_depth) for child in below)
    return tree.is_open(node)


def _values(tree: Tree, critic: float) -> tuple[dict[int, float], dict[int, int]]:
    """Return the value and the visits of each node.

    A value is the mean over the node's subtree of scores scaled to [0, 1], in which failures and pending steps count 0.
    `critic` is the weight of the critic's estimate against the score. Visits are the size of the subtree.
    """
    gains = {node.number: gain for node in tree if (gain := tree.gain(node)) is not None}
    low, high = min(gains.values()), max(gains.values())
    sums, visits = {}, {}
    for node in reversed(list(tree)):  # Children have larger numbers than their parents.
        own = (gains[node.number] - low) / ((high - low) or 1.0) if node.number in gains else 0.0
        if node.number in gains and node.result is not None and node.result.value is not None:
            own += critic * (min(1.0, max(0.0, node.result.value)) - own)
        below = [child.number for child in tree.children(node.number)]
        sums[node.number] = own + sum(sums[child] for child in below)
        visits[node.number] = 1 + sum(visits[child] for child in below)
    return {number: sums[number] / visits[number] for number in sums}, visits
