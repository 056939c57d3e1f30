"""One search from its folder to its result: opens the tree, runs the loop, and writes the best script at any end."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from environments.actions.openai_http import EndpointError
from environments.episode import Episode
from environments.interfaces.terminal import printable
from environments.protocol import Job, State
from environments.queue.base import QueueError, RewardQueue
from environments.sandbox.base import SandboxError
from mlagent_jax.agents.episodes import Action, Agent
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.interruption import Interruption, Stopped
from mlagent_jax.search import result
from mlagent_jax.search.display import Display
from mlagent_jax.search.executors import Fleet, LocalSlots
from mlagent_jax.search.run import UNREADABLE, Search, Settings
from mlagent_jax.search.store import TreeStore
from mlagent_jax.search.tree import Node, Tree

PAGE_SECONDS = 15.0
"""Minimum time between two writes of the page while the search goes on."""


def search(
    episode: Episode,
    agent: Agent,
    folder: Path,
    settings: Settings,
    *,
    agent_name: str,
    console: Console,
    queue: RewardQueue | None = None,
    ensemble_size: int = 0,
) -> tuple[dict[str, Any], int]:
    """Search for a better script for the task of `episode`, or continue the search in `folder`.

    Args:
      episode: The task; its seed is that of the search's data.
      agent: Source of actions.
      folder: Folder of the tree and the result; local.
      settings: Strategy, budget, seed and slots.
      agent_name: Name of the agent; a folder belongs to one agent.
      console: Console for progress and result.
      queue: Queue of a fleet; None: scripts run in this process's slots.
      ensemble_size: Maximum scripts of an ensemble of the best ones, counted with repetitions; 0: none.

    Returns:
      `score.json`, and the exit status: 0, or that of the signal that stopped the search.

    Raises:
      ConfigError: The folder belongs to another search, or the agent never proposed an action.
      SandboxError, QueueError: Scripts can no longer be executed; the best so far is in `folder`.
      EndpointError: The agent's endpoint gives no answer; the best so far is in `folder`.
    """
    facts = {
        "task": episode.task_key,
        "agent": agent_name,
        "strategy": _written(settings),
        "seed": settings.seed,
        "profile": episode.profile,
    }
    with contextlib.ExitStack() as opened:
        store = opened.enter_context(TreeStore(folder, facts, episode.state, episode.scale))
        run = store.fact("run") or f"solve-{uuid.uuid4().hex[:12]}"
        store.record("run", run)
        executor = LocalSlots(episode.take, settings.slots) if queue is None else Fleet(queue, run, episode.image)
        opened.callback(executor.close)
        failure, status = None, 0
        interruption = opened.enter_context(Interruption())
        try:
            with Display(console, settings.budget, episode.spec.metric) as display:
                show = _shown(display, folder, episode, settings)
                ended = Search(store, settings, agent, _jobs(episode), executor, show).run()
        except Stopped as stop:
            ended, status = "stopped by a signal", stop.status
        except (EndpointError, QueueError, SandboxError) as error:
            ended, failure = f"ended by an error ({error})", error
        try:
            with interruption.held():  # the first signal does not interrupt writing the result
                score = result.conclude(folder, episode, store, facts, ended, ensemble_size)
        except Stopped as stop:  # raised at the end of the section, also for a signal before it
            status = stop.status
        lines = result.sentences(score, episode.spec.metric, store.tree)
        for line in [*lines, f"warning: {score['warning']}"] if score["warning"] else lines:
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        if failure is not None:
            raise failure
        _check_asked(store.tree)
    return score, status


def _jobs(episode: Episode) -> Callable[[State, Action], Job]:
    return lambda state, action: episode.job(state, action.text, cut=action.truncated)


def _written(settings: Settings) -> str:
    """Return the strategy with all its parameters."""
    parameters = ",".join(f"{name}={value}" for name, value in settings.strategy.parameters)
    return f"{settings.strategy.name}:{parameters}" if parameters else settings.strategy.name


def _shown(display: Display, folder: Path, episode: Episode, settings: Settings) -> Callable[[Tree, list[Node]], None]:
    """Return the callback for changes: it shows them, and writes the best script and the page when these are due."""
    best, written = -1, float("-inf")

    def show(tree: Tree, finished: list[Node]) -> None:
        nonlocal best, written
        display.show(tree, finished)
        if tree.best().number != best:
            best = tree.best().number
            result.write_best(folder, episode, tree, settings.seed)
        if finished and time.monotonic() - written >= PAGE_SECONDS:
            written = time.monotonic()
            result.write_progress(folder, episode, tree, settings.budget)

    return show


def _check_asked(tree: Tree) -> None:
    """Check that the agent proposed at least one action.

    Raises:
      ConfigError: No step has an action.
    """
    results = [node.result for node in tree.finished()]
    if results and all(each.kind == "no_action" for each in results):
        remedy = ": raise --max_prompt_tokens" if results[-1].reason == UNREADABLE else ""
        raise ConfigError(f"no action was proposed: {results[-1].reason}{remedy}")
