"""The tree of a search: node 0 is the starting script, and every other node is one step with its outcome.

    strategy(tree) -> Plan -> (agent, execution) -> Result -> tree

A `Tree` is plain data in memory, which strategies read. A node is pending while its step is in work, and never changes
after it is finished. `store` keeps the tree on disk.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State, canonical_json

FAILED = (OutcomeKind.SCRIPT_ERROR, OutcomeKind.TIME_LIMIT, OutcomeKind.MEMORY_LIMIT)
"""Outcomes of a script that ran and gave no score."""
STEP = ""
"""Operator of a plain step, as in an episode."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step to take."""

    operator: str
    """One of `protocol.OPERATORS`, or `STEP`."""
    parent: int
    """Node whose state the step starts from."""
    other: int | None = None
    """Second parent of `combine`."""

    @property
    def parents(self) -> tuple[int, ...]:
        """Numbers of the parent and, for `combine`, of the second parent."""
        return (self.parent,) if self.other is None else (self.parent, self.other)


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a step."""

    action: str
    """Text of the action; empty if there is none."""
    outcome: Outcome | None
    """Outcome of the action; None if the agent gave no action, for the `reason` below."""
    truncated: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    """Seconds that the agent took."""
    value: float | None = None
    """The critic's estimate for the state after the step, if there is a critic."""
    reason: str = ""

    @property
    def kind(self) -> str:
        """`no_action` or a value of `OutcomeKind`."""
        return "no_action" if self.outcome is None else str(self.outcome.kind)

    @property
    def executed(self) -> bool:
        """Whether a script ran; outcomes from a cache count too."""
        return self.outcome is not None and "started" in self.outcome.progress

    def to_json(self) -> str:
        """Return the result as JSON, with characters that UTF-8 cannot encode replaced."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        record["outcome"] = self.outcome and self.outcome.to_dict()
        # A reply may contain lone surrogates, which UTF-8 cannot encode.
        return canonical_json(record).encode("utf-8", "replace").decode()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Result:
        """Return the result of the parsed JSON of `to_json`."""
        return cls(**{**data, "outcome": data["outcome"] and Outcome.from_dict(data["outcome"])})


@dataclasses.dataclass(frozen=True)
class Node:
    """One node. `plan` is None only for the root; `result` is None for the root and while the step is in work."""

    number: int
    plan: Plan | None
    result: Result | None
    state: State
    """State after the step. While the step is in work, or if it has no such state, the state before it."""
    began: float = 0.0
    """Time of the claim, in seconds since 1970."""
    ended: float | None = None

    @property
    def pending(self) -> bool:
        """Whether the step is in work."""
        return self.plan is not None and self.result is None

    @property
    def operator(self) -> str:
        """Operator of the step; `step` for a plain step, `start` for the root."""
        return "start" if self.plan is None else self.plan.operator or "step"

    @property
    def kind(self) -> str:
        """`start`, `pending`, `no_action` or a value of `OutcomeKind`."""
        return "start" if self.plan is None else "pending" if self.result is None else self.result.kind

    @property
    def metric(self) -> float | None:
        """Score of the node's script on the half that the search sees; None if the step was not scored."""
        if self.plan is None:
            return self.state.metric
        outcome = self.result and self.result.outcome
        return outcome.metric_after if outcome and outcome.kind is OutcomeKind.SCORED else None

    @property
    def failed(self) -> bool:
        """Whether a script ran and gave no score."""
        return self.kind in FAILED


class Tree:
    """Nodes by number, in the order of their claims."""

    def __init__(self, start: State, scale: Scale) -> None:
        self.scale = scale
        self.nodes: dict[int, Node] = {0: Node(0, None, None, start)}
        self._children: dict[int, list[int]] = {0: []}

    def __len__(self) -> int:
        """Return the number of steps, those in work included."""
        return len(self.nodes) - 1

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    @property
    def root(self) -> Node:
        """Node of the starting script."""
        return self.nodes[0]

    def add(self, number: int, plan: Plan, result: Result | None, began: float, ended: float | None) -> Node:
        """Add a node, or finish one that is pending."""
        before = self.state_before(plan)
        state = before
        if result is not None and result.outcome is not None and result.kind != OutcomeKind.INFRASTRUCTURE_ERROR:
            state = result.outcome.next_state(Job("solve", 0, before, number, result.action))
        if number not in self.nodes:
            self._children[number] = []
            self._children[plan.parent].append(number)
        self.nodes[number] = Node(number, plan, result, state, began, ended)
        return self.nodes[number]

    def state_before(self, plan: Plan) -> State:
        """Return the state that a step of `plan` starts from, without its memory."""
        state = self.nodes[plan.parent].state
        other = "" if plan.other is None else self.nodes[plan.other].state.script
        return dataclasses.replace(state, operator=plan.operator, other=other, memory=())

    def children(self, number: int) -> list[Node]:
        """Return the children of the node with this number, in the order of their claims."""
        return [self.nodes[child] for child in self._children[number]]

    def finished(self) -> list[Node]:
        """Return the steps that have a result, by number."""
        return [node for node in self if node.result is not None]

    def pending(self) -> list[Node]:
        """Return the steps in work, by number."""
        return [node for node in self if node.pending]

    def gain(self, node: Node) -> float | None:
        """Return the improvement over the starting script in units of the task's gap; None if the node has no score."""
        if node.metric is None:
            return None
        return self.scale.delta(self.scale.m_init, node.metric) / (self.scale.gap or 1.0)

    def is_open(self, node: Node) -> bool:
        """Return whether steps can start from the node.

        The node must be scored or have changed nothing, and the agent must be able to read its state.
        """
        going = node.metric is not None or (node.kind == OutcomeKind.NO_EDIT and not node.result.outcome.final)
        return going and self._readable(node)

    def _readable(self, node: Node) -> bool:
        return not any(child.kind == "no_action" for child in self.children(node.number))

    def scored(self) -> list[Node]:
        """Return the open nodes with a score, the starting script included; best first, older first in a tie."""
        nodes = [node for node in self if node.metric is not None and self._readable(node)]
        return sorted(nodes, key=lambda node: (-self.gain(node), node.number))

    def best(self) -> Node:
        """Return the node with the best score; the oldest in a tie, so the root if nothing is better."""
        return max((node for node in self if node.metric is not None), key=lambda node: (self.gain(node), -node.number))

    def debuggable(self, max_depth: int) -> list[Node]:
        """Return failed nodes without children that follow at most `max_depth` - 1 failures in a row."""
        return [
            node
            for node in self
            if node.failed and not self._children[node.number] and self.failures(node) <= max_depth
        ]

    def failures(self, node: Node) -> int:
        """Return the number of failures in a row that end with `node`."""
        count = 0
        while node.plan is not None and node.failed:
            count, node = count + 1, self.nodes[node.plan.parent]
        return count

    def tip(self, node: Node) -> Node:
        """Return the last of the looks (steps that changed nothing) that directly follow `node`; else `node`.

        A step that starts there knows the output of these looks.
        """
        while looks := [child for child in self.children(node.number) if child.kind == OutcomeKind.NO_EDIT]:
            if not self.is_open(looks[-1]) or looks[-1].number != self._children[node.number][-1]:
                break
            node = looks[-1]
        return node

    def path(self, node: Node) -> list[Node]:
        """Return the steps from the root to `node`, in order."""
        steps = []
        while node.plan is not None:
            steps.append(node)
            node = self.nodes[node.plan.parent]
        return steps[::-1]


@dataclasses.dataclass(frozen=True)
class Totals:
    """Amounts that a search has used so far."""

    steps: int = 0
    """Finished steps."""
    executions: int = 0
    pending: int = 0
    """Steps in work."""
    tokens: int = 0
    """Prompt and completion tokens of the agent."""
    cost: float = 0.0
    seconds: float = 0.0
    """Seconds in which at least one step was in work."""


def totals(nodes: Iterable[Node], now: float) -> Totals:
    """Return the amounts that `nodes` used until `now`, in seconds since 1970."""
    nodes = [node for node in nodes if node.plan is not None]
    results = [node.result for node in nodes if node.result is not None]
    seconds, reached = 0.0, float("-inf")
    for began, ended in sorted((node.began, now if node.ended is None else node.ended) for node in nodes):
        seconds += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return Totals(
        steps=len(results),
        executions=sum(result.executed for result in results),
        pending=len(nodes) - len(results),
        tokens=sum(result.prompt_tokens + result.completion_tokens for result in results),
        cost=sum(result.cost for result in results),
        seconds=seconds,
    )


def by_operator(nodes: Iterable[Node]) -> dict[str, dict[str, float]]:
    """Return figures by operator: number of steps, shares of valid actions, of scored steps and of steps that improved
    the score of their parent, and the mean reward."""
    groups: dict[str, list[Outcome]] = {}
    for node in nodes:
        if node.result is not None and node.result.outcome is not None:
            groups.setdefault(node.operator, []).append(node.result.outcome)
    return {name: _figures(outcomes) for name, outcomes in sorted(groups.items())}


def _figures(outcomes: list[Outcome]) -> dict[str, float]:
    share = functools.partial(_mean, outcomes)
    return {
        "steps": len(outcomes),
        "valid": share(lambda o: o.kind is not OutcomeKind.INVALID_ACTION),
        "scored": share(lambda o: o.kind is OutcomeKind.SCORED),
        "better": share(lambda o: o.kind is OutcomeKind.SCORED and o.delta > o.scale.noise),
        "reward": share(lambda o: o.reward or 0.0),
    }


def _mean(outcomes: list[Outcome], value: Any) -> float:
    return sum(float(value(outcome)) for outcome in outcomes) / len(outcomes)
