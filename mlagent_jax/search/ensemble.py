"""Ensembles of the best scripts of a search, chosen greedily on the half of the labels that the search sees.

Forward selection with replacement (Caruana, Niculescu-Mizil, Crew and Ksikes 2004, "Ensemble selection from libraries
of models"): starting from an empty ensemble, add the script whose blend with the others scores best; keep the best
blend.
"""

from __future__ import annotations

import collections
import json
import shutil
from pathlib import Path
from typing import Any

from environments.episode import Episode
from environments.guest.script import environment
from environments.seeds import execution_seed
from environments.tasks.task import InvalidSubmissionError
from mlagent_jax.runtime.files import write_whole
from mlagent_jax.search import blend
from mlagent_jax.search.tree import Node, Tree

CANDIDATES = 20
"""Maximum candidates of an ensemble: the best scripts with different submissions."""
_AVERAGED = ("number", "probability")
_NOT_OURS = ("HOME", "TMPDIR", "USER", "PATH")
"""Environment variables of the sandbox for which every host has its own values."""


def choose(episode: Episode, tree: Tree, size: int) -> tuple[dict[int, int], str] | None:
    """Choose the best blend of at most `size` scripts, counted with repetitions.

    Returns:
      The weight of each node in the blend, and the id of its submission. None if no blend beats the best script alone,
      or the task's submissions cannot be blended.
    """
    nodes = _candidates(tree)
    means = [name for name, kind in episode.kinds.items() if kind in _AVERAGED]
    if len(nodes) < 2 or not episode.kinds:
        return None
    tables = {node.number: episode.submission(node.result.outcome.submission).decode("utf-8-sig") for node in nodes}
    best: tuple[float, dict[int, int], str] | None = None
    counts: collections.Counter[int] = collections.Counter()
    for _ in range(size):
        tried = []
        for number in tables:
            more = counts + collections.Counter([number])
            scored = _scored(episode, [tables[each] for each in more], list(more.values()), means)
            if scored is not None:
                tried.append((tree.scale.delta(tree.scale.m_init, scored[0]), -number, more, scored[1]))
        if not tried:
            return None
        gain, _, counts, submission = max(tried, key=lambda each: each[:2])
        if best is None or gain > best[0]:
            best = gain, dict(counts), submission
    alone = tree.scale.delta(tree.scale.m_init, tree.best().metric)
    return best[1:] if best is not None and len(best[1]) > 1 and best[0] > alone else None


def _candidates(tree: Tree) -> list[Node]:
    different: dict[str, Node] = {}
    for node in tree.scored():
        if node.plan is not None:
            different.setdefault(node.result.outcome.submission, node)
    return list(different.values())[:CANDIDATES]


def _scored(episode: Episode, tables: list[str], weights: list[int], means: list[str]) -> tuple[float, str] | None:
    """Return the score of a blend and the id of its submission; None if the blend is not a valid submission."""
    try:
        submission = episode.store.put(blend.blend(tables, weights, means).encode())
        return episode.reward_score(submission), submission
    except (InvalidSubmissionError, ValueError, IndexError):
        return None


def variables(execution_seed: int) -> dict[str, str]:
    """Return the environment variables of the sandbox that a script needs on another host too."""
    return {name: value for name, value in environment(execution_seed).items() if name not in _NOT_OURS}


def write(folder: Path, episode: Episode, tree: Tree, counts: dict[int, int], submission: str, seed: int) -> None:
    """Write an ensemble: the workspaces of its members, the program that runs and blends them, and the submission.

    Args:
      folder: Folder of the ensemble, which is replaced.
      episode: The task.
      tree: The tree of the search.
      counts: Weight of each node, from `choose`.
      submission: Id of the blended submission.
      seed: Seed of the search.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for number in counts:
        episode.export(tree.nodes[number].state.snapshot, folder / "members" / str(number))
    execution = execution_seed(seed)
    plan: dict[str, Any] = {
        "entry": episode.spec.entry,
        "submission": episode.spec.submission,
        "seed": execution,
        "environment": variables(execution),
        "means": [name for name, kind in episode.kinds.items() if kind in _AVERAGED],
        "members": {str(number): count for number, count in counts.items()},
    }
    write_whole(folder / "members.json", json.dumps(plan, indent=1) + "\n")
    shutil.copyfile(blend.__file__, folder / "blend.py")
    write_whole(folder / Path(episode.spec.submission).name, episode.submission(submission))
