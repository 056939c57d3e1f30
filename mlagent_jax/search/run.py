"""The loop of a search: claim a step, ask the agent, execute, store the result, until the budget is spent.

    claim (strategy) -> agent -> executor -> store
      ^------------------------------------------'

The stored tree holds the whole state of the loop, so that the loop may be stopped and restarted at any moment.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from environments.protocol import Job, Outcome, OutcomeKind, State
from environments.registry import Choice
from mlagent_jax.agents.episodes import Action, Agent, Reply, Step, Trajectory
from mlagent_jax.runtime.errors import BudgetError
from mlagent_jax.search.budget import Budget
from mlagent_jax.search.executors import Executor
from mlagent_jax.search.memory import memory
from mlagent_jax.search.store import TreeStore
from mlagent_jax.search.strategies import Strategy
from mlagent_jax.search.tree import STEP, Node, Plan, Result, Tree, totals

IDLE_STEPS = 50
"""Number of steps in a row without an execution after which a search ends. Such steps never exhaust a budget of
executions."""
LOST_STEPS = 5
"""Number of infrastructure errors in a row after which a search ends."""
POLL_SECONDS = 1.0
UNREADABLE = "the prompt of this state is longer than the agent can read"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a search."""

    strategy: Choice[Strategy]
    budget: Budget
    seed: int
    slots: int = 1
    """Maximum concurrent steps."""


class Pending(NamedTuple):
    """A step that is being executed."""

    node: Node
    action: Action
    seconds: float
    """Seconds that the agent took."""


class Search:
    """Loop of a search in one process; several processes may share a tree.

    Args:
      store: The tree.
      settings: See `Settings`.
      agent: Source of actions.
      job: Maps a state and an action to a job.
      executor: Executes jobs.
      show: Callback after each change and while waiting; its arguments are the tree and the nodes just finished.
    """

    def __init__(
        self,
        store: TreeStore,
        settings: Settings,
        agent: Agent,
        job: Callable[[State, Action], Job],
        executor: Executor,
        show: Callable[[Tree, list[Node]], None] = lambda tree, finished: None,
    ) -> None:
        self._store, self._settings, self._agent, self._executor = store, settings, agent, executor
        self._job, self._show = job, show
        self._pending: dict[int, Pending] = {}
        self._refused = ""  # Why the agent takes no further step.

    def run(self) -> str:
        """Search until there is a reason to end; return the reason.

        Raises:
          SandboxError, QueueError: Scripts cannot be executed.
          EndpointError: The agent's endpoint gives no answer.
        """
        with self._store.renewed():
            while True:
                ended = self._refused or self._ended()
                claimed = [] if ended else self._claim()
                if claimed:
                    self._refused = ended = self._act(claimed)
                elif not self._pending:
                    ended = ended or self._settings.budget.spent(totals(self._store.tree, time.time()))
                if ended and not self._pending:
                    return ended
                if self._pending:
                    self._gather()
                elif not claimed:  # The strategy waits for steps of other processes.
                    time.sleep(POLL_SECONDS)
                self._show(self._store.refresh(), [])

    def _ended(self) -> str:
        """Return why no further step makes sense, or an empty string."""
        results = [node.result for node in self._store.refresh().finished()]
        if len(results) >= IDLE_STEPS and not any(result.executed for result in results[-IDLE_STEPS:]):
            return f"the agent's last {IDLE_STEPS} steps ran no script"
        last = results[-LOST_STEPS:]
        if len(last) == LOST_STEPS and all(result.kind == OutcomeKind.INFRASTRUCTURE_ERROR for result in last):
            return f"scripts cannot be executed: {last[-1].outcome.reason}"
        return ""

    def _claim(self) -> list[Node]:
        """Claim a step for each free slot: first steps that a stopped process left, then new ones."""
        claimed: list[Node] = []
        used = totals(self._store.tree, time.time())
        if self._settings.budget.spent(dataclasses.replace(used, pending=0)):
            return claimed
        while len(claimed) + len(self._pending) < self._settings.slots:
            node = self._store.claim(self._plan)
            if node is None:
                break
            claimed.append(node)
        return claimed

    def _plan(self, tree: Tree, number: int) -> Plan | None:
        if self._settings.budget.spent(totals(tree, time.time())):
            return None
        return self._settings.strategy(tree, random.Random(f"{self._settings.seed}/plan/{number}"))  # noqa: S311

    def _act(self, nodes: list[Node]) -> str:
        """Ask the agent for the actions of claimed steps, and begin to execute them.

        Returns:
          The reason why the search must end, or an empty string. The steps then stay open for a later search.
        """
        tree = self._store.tree
        trajectories = [self._trajectory(tree, node) for node in nodes]
        readable = [self._agent.fits(trajectory.state) for trajectory in trajectories]
        asked = [trajectory for trajectory, fits in zip(trajectories, readable, strict=True) if fits]
        started = time.monotonic()
        try:
            actions = iter(self._agent.act(asked, 0) if asked else [])
        except BudgetError as error:
            return str(error)
        seconds = (time.monotonic() - started) / max(1, len(asked))
        for node, trajectory, fits in zip(nodes, trajectories, readable, strict=True):
            action = next(actions) if fits else None
            if action is None:
                reason = "the agent gave no answer" if fits else UNREADABLE
                self._finish(node.number, Result("", None, seconds=seconds if fits else 0.0, reason=reason))
                continue
            self._pending[node.number] = Pending(node, action, seconds)
            self._executor.submit(node.number, self._job(trajectory.state, action))
        return ""

    def _trajectory(self, tree: Tree, node: Node) -> Trajectory:
        """Return the step as the agent sees it. A plain step continues its episode; a step with an operator stands
        alone."""
        state = tree.state_before(node.plan)
        seed = self._settings.seed
        if node.plan.operator != STEP:
            state = dataclasses.replace(state, memory=memory(tree))
            return Trajectory("solve", node.number, state, seed=f"{seed}/{node.number}")
        path = tree.path(tree.nodes[node.plan.parent])
        steps = [
            Step(
                Reply(before.result.action, before.result.truncated),
                self._job(tree.state_before(before.plan), Reply(before.result.action, before.result.truncated)),
                before.result.outcome,
                before.result.seconds,
            )
            for before in path
        ]
        first = path[0].number if path else node.number
        return Trajectory("solve", node.number, state, seed=f"{seed}/episode/{first}", steps=steps)

    def _gather(self) -> None:
        """Store the outcomes that arrived."""
        for number, outcome in self._executor.wait(POLL_SECONDS).items():
            # None: the step was lost to a process that died, claimed again, and has its outcome already.
            if (pending := self._pending.pop(number, None)) is not None:
                self._finish(number, self._result(pending, outcome))

    def _result(self, pending: Pending, outcome: Outcome) -> Result:
        action = pending.action
        value = None
        if outcome.kind is not OutcomeKind.INFRASTRUCTURE_ERROR:
            before = self._store.tree.state_before(pending.node.plan)
            (value,) = self._agent.values([outcome.next_state(self._job(before, action))])
        return Result(
            action=action.text,
            outcome=outcome,
            truncated=action.truncated,
            prompt_tokens=action.prompt_tokens,
            completion_tokens=action.completion_tokens,
            cost=action.cost,
            seconds=pending.seconds,
            value=value,
        )

    def _finish(self, number: int, result: Result) -> None:
        if self._store.finish(number, result):
            self._show(self._store.tree, [self._store.tree.nodes[number]])
