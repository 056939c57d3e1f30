"""Result of a search in its folder: the best script, ready to run without this project, and the page.

    ensemble/         with --ensemble, where it is better: its scripts, blend.py, their submission
    best/             the workspace of the best script, with its read-only files; data/ leads to the data
    data/             public data of the task
    submission.csv    what the script submitted      requirements.txt  reproduce.py
    solution.diff     from the starting script       score.json        steps.jsonl        page.html

`best/` is replaced at each new best. Processes that share the folder write one after the other. Each submission is
scored at most once on the other half of the labels.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import pprint
import shutil
import tempfile
from pathlib import Path
from typing import Any

from environments.episode import Episode
from environments.protocol import OutcomeKind
from environments.sandbox.rootfs.assemble import LOCK_FILE
from environments.seeds import execution_seed
from environments.tasks.task import GraderError, InvalidSubmissionError
from mlagent_jax.checkpoints.folders import whole_folder
from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.files import one_at_a_time, write_whole
from mlagent_jax.search import ensemble, selection
from mlagent_jax.search.budget import Budget
from mlagent_jax.search.page import write_page
from mlagent_jax.search.store import TreeStore
from mlagent_jax.search.tree import Node, Tree, by_operator, totals

_COPIED_BYTES = 1 << 30
"""Maximum bytes of data that are copied; larger data are linked to."""


def improved(tree: Tree) -> bool:
    """Return whether the best script beats the starting script by more than its noise."""
    best = tree.best()
    return tree.scale.delta(tree.scale.m_init, best.metric) > tree.scale.noise


def _turn(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Return the context in which no other process writes the result in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return one_at_a_time(folder / ".result.lock")


def write_best(folder: Path, episode: Episode, tree: Tree, seed: int) -> None:
    """Write the workspace of the best script, and the files that it needs to run elsewhere.

    Args:
      folder: Folder of the search.
      episode: The task.
      tree: The tree of the search.
      seed: Seed of the search.
    """
    with _turn(folder):
        _write_best(folder, episode, tree, seed)


def _write_best(folder: Path, episode: Episode, tree: Tree, seed: int) -> None:
    best, spec = tree.best(), episode.spec
    _link_data(folder / "data", episode.public)
    with tempfile.TemporaryDirectory(prefix=".best-", dir=folder) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        episode.export(best.state.snapshot, new)
        with contextlib.suppress(FileExistsError):
            (new / "data").symlink_to("../data")
        if (folder / "best").exists():
            os.rename(folder / "best", old)
        os.rename(new, folder / "best")
    name = Path(spec.submission).name
    submission = episode.start_submission if best.plan is None else episode.submission(best.result.outcome.submission)
    if submission is not None:
        write_whole(folder / name, submission)
    lines = [text.splitlines(keepends=True) for text in (tree.root.state.script, best.state.script)]
    diff = difflib.unified_diff(*lines, f"start/{spec.entry}", f"best/{spec.entry}")
    write_whole(folder / "solution.diff", "".join(diff))
    packages = [line for line in LOCK_FILE.read_text().splitlines() if line and not line.startswith("#")]
    write_whole(folder / "requirements.txt", "\n".join(packages) + "\n")
    ran = 0 if best.plan is None else seed  # The task's preparation ran the starting script with seed 0.
    write_whole(folder / "reproduce.py", _reproduce(spec.entry, spec.submission, execution_seed(ran)))


def _reproduce(entry: str, submission: str, seed: int) -> str:
    text = Path(__file__).with_name("reproduce.py.txt").read_text(encoding="utf-8")
    for mark, value in (
        ("@ENTRY_TEXT@", repr(entry)),
        ("@SUBMISSION_TEXT@", repr(submission)),
        ("@ENTRY@", entry),
        ("@SUBMISSION@", submission),
        ("@SEED@", str(seed)),
        ("@ENVIRONMENT@", pprint.pformat(ensemble.variables(seed))),
    ):
        text = text.replace(mark, value)
    return text


def _link_data(place: Path, public: Path) -> None:
    """Copy the public data, or link to them if they are large, unless `place` exists."""
    if place.exists() or place.is_symlink():
        return
    size = sum(path.stat().st_size for path in public.rglob("*") if path.is_file())
    if size > _COPIED_BYTES:
        place.symlink_to(public.resolve())
        return
    with whole_folder(place) as draft:
        shutil.copytree(public, draft, dirs_exist_ok=True)


def conclude(
    folder: Path,
    episode: Episode,
    store: TreeStore,
    settings: dict[str, Any],
    ended: str,
    ensemble_size: int = 0,
) -> dict[str, Any]:
    """Score the best script on the other half of the labels, write all files, and return the contents of `score.json`.

    Args:
      folder: Folder of the search.
      episode: The task.
      store: The stored tree.
      settings: Settings of the search, for the story; `seed` among them.
      ended: Why the search ended.
      ensemble_size: Maximum scripts of an ensemble, counted with repetitions; 0: none.

    Raises:
      GraderError: The task's grader fails.
    """
    with _turn(folder):
        return _conclude(folder, episode, store, settings, ended, ensemble_size)


def _conclude(
    folder: Path, episode: Episode, store: TreeStore, settings: dict[str, Any], ended: str, ensemble_size: int
) -> dict[str, Any]:
    tree = store.refresh()
    best = tree.best()
    _write_best(folder, episode, tree, settings["seed"])
    report_start, report = episode.report_score(None), _judged(store, episode, best)
    blended = _ensemble(folder / "ensemble", episode, store, ensemble_size, settings["seed"])
    judged = len(store.fact("judged") or {})
    scale = tree.scale
    # In gaps of the half that the search saw, so that both gains have the same unit.
    report_gain = scale.delta(report_start, report) / (scale.gap or 1.0)
    estimated = _estimate(episode, tree)
    used = totals(tree, max((node.ended or node.began for node in tree), default=0.0))
    score = {
        "metric": episode.spec.metric,
        "higher_is_better": scale.higher_is_better,
        "improved": improved(tree),
        "node": best.number,
        "score": best.metric,
        "start_score": scale.m_init,
        "noise_by_seed": scale.noise,
        "report_score": report,
        "start_report_score": report_start,
        "gain": tree.gain(best),
        "report_gain": report_gain,
        "gap_between_halves": tree.gain(best) - report_gain,
        "judged_scripts": judged,
        "ensemble": blended,
        "selection": estimated.to_dict() if estimated else None,
        "warning": estimated.warning if estimated else "",
        "executions": used.executions,
        "steps": used.steps,
        "seconds": round(used.seconds, 1),
        "tokens": used.tokens,
        "cost": used.cost,
        "operators": by_operator(tree),
        "ended": ended,
        **settings,
    }
    write_whole(folder / "score.json", json.dumps(score, indent=1) + "\n")
    jsonl.replace(folder / "steps.jsonl", (_step(tree, node) for node in tree.finished()))
    lines = sentences(score, episode.spec.metric, tree)
    write_page(folder / "page.html", tree, {**_story(episode, score["warning"]), "lines": lines})
    return score


def write_progress(folder: Path, episode: Episode, tree: Tree, budget: Budget) -> None:
    """Write the page of a search that is still running."""
    used = totals(tree, max((node.ended or node.began for node in tree), default=0.0))
    with _turn(folder):
        write_page(folder / "page.html", tree, {**_story(episode, ""), "lines": [f"In work: {budget.show(used)}."]})


def _story(episode: Episode, warning: str) -> dict[str, Any]:
    return {"task": episode.spec.name, "metric": episode.spec.metric, "warning": warning}


def _judged(store: TreeStore, episode: Episode, best: Node) -> float:
    """Return the score of a node's script on the other half."""
    if best.plan is None:
        return episode.report_score(None)
    return _judge(store, episode, best.result.outcome.submission)


def _judge(store: TreeStore, episode: Episode, submission: str) -> float:
    """Return the score of a submission on the other half, from the store if it was scored before."""
    judged = store.fact("judged") or {}
    if submission not in judged:
        judged[submission] = episode.report_score(submission)
        store.record("judged", judged)
    return judged[submission]


def _ensemble(folder: Path, episode: Episode, store: TreeStore, size: int, seed: int) -> dict[str, Any] | None:
    """Write the best ensemble and return its scores; None if no ensemble beats the best script."""
    chosen = ensemble.choose(episode, store.tree, size) if size else None
    if chosen is None:
        return None
    counts, submission = chosen
    ensemble.write(folder, episode, store.tree, counts, submission, seed)
    score, report = episode.reward_score(submission), _judge(store, episode, submission)
    return {"members": {str(number): count for number, count in counts.items()}, "score": score, "report_score": report}


def _estimate(episode: Episode, tree: Tree) -> selection.Selection | None:
    """Return the estimated effect of the selection; None if the grader cannot score parts of a table."""
    first: dict[str, Node] = {}
    for node in tree:
        if node.plan is not None and node.metric is not None:
            first.setdefault(node.result.outcome.submission, node)
    best = sorted(first.values(), key=lambda node: (-tree.gain(node), node.number))[: selection.MAX_CANDIDATES]
    chosen = sorted(best, key=lambda node: node.number)
    try:
        return selection.estimate(
            [node.result.outcome.submission for node in chosen],
            tree.scale,
            lambda submission: episode.resampled(submission, selection.DRAWS, 0),
        )
    except (GraderError, InvalidSubmissionError):
        return None  # The task's own grade.py takes whole tables only.


def _step(tree: Tree, node: Node) -> dict[str, Any]:
    """Return a node as a line of steps.jsonl."""
    result = node.result
    return {
        "node": node.number,
        "operator": node.operator,
        "parents": list(node.plan.parents),
        "action": result.action,
        "outcome": result.outcome and result.outcome.to_dict(),
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "cost": result.cost,
        "seconds": result.seconds,
        "value": result.value,
        "reason": result.reason,
    }


def sentences(score: dict[str, Any], metric: str, tree: Tree) -> list[str]:
    """Return sentences about the result (`score.json`), for the terminal and the page."""
    better = "higher" if score["higher_is_better"] else "lower"
    ended = score["ended"][:1].upper() + score["ended"][1:]
    lines = [f"{ended}; {score['executions']} scripts ran in {score['steps']} steps."]
    if not score["improved"]:
        lines.append(f"Nothing better was found{_why(tree)}; best/ holds the starting script or one within its noise.")
    lines += [
        f"{metric} ({better} is better) on the half that the search saw: {score['start_score']:.5g} -> "
        f"{score['score']:.5g}.",
        f"On labels used for nothing else: {score['start_report_score']:.5g} -> {score['report_score']:.5g}.",
        f"Gain in gaps: {score['gain']:.3f} on the first, {score['report_gain']:.3f} on the second half.",
    ]
    if chosen := score["selection"]:
        lines.append(
            f"The first gain has a standard error of {chosen['noise_of_gain']:.3f}, and corrected for the choice among "
            f"{chosen['candidates']} candidates it is {chosen['corrected_gain']:.3f}."
        )
    if blended := score["ensemble"]:
        lines.append(
            f"The ensemble of {len(blended['members'])} scripts: {blended['score']:.5g} on the first half, "
            f"{blended['report_score']:.5g} on the second."
        )
    if score["judged_scripts"] > 1 + bool(blended):
        lines.append(
            f"{score['judged_scripts']} submissions of this search were judged on the second half by now, since it was "
            "continued: its score is no longer that of a single judgement."
        )
    return lines


def _why(tree: Tree) -> str:
    """Return the reason why nothing was found, if no script was scored; else an empty string."""
    results = [node.result for node in tree.finished()]
    if any(result.kind == OutcomeKind.SCORED for result in results) or not results:
        return ""
    last = next((result for result in reversed(results) if result.outcome is not None), None)
    said = f": the last ended with {last.kind.replace('_', ' ')}" if last else ""
    if any(result.executed for result in results):
        return f", since none of the scripts ran to a valid submission{said}"
    return f", since no action led to an execution{said}"
