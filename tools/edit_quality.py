"""Of a run's evaluated policies, what their edits are like: what pretrained weights should change.

    python tools/edit_quality.py runs/smollm2

One line a policy and split, over the actions from the fixed states:

    valid       share of valid actions
    repaired    share of actions whose form was repaired before they ran
    quoting     share of the search-and-replace edits that quote the script rightly, so that they apply; in brackets how
                many there are
    distinct    distinct edits among the actions from one state, as a share of them
    new API     share of the edits that ran and call a class that no imitated step of the expert names
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from environments.protocol import OutcomeKind
from mlagent_jax.reporting import diversity
from mlagent_jax.runtime import jsonl
from mlagent_jax.trajectories.store import TrajectoryStore

PATCH = re.compile(r"^<<<<<<< SEARCH", re.MULTILINE)


def known_classes(workdir: Path) -> set[str]:
    """Return the classes that the prompts and actions of the expert's training steps call."""
    steps = TrajectoryStore.open(workdir / "trajectories" / "collect")
    shown = (text for step in steps if step.split == "train" for text in (step.state.script, step.action))
    return {name for text in shown for name in diversity.called(text)}


def quality(records: Iterable[Mapping[str, Any]], known: set[str], distinct: Iterable[float]) -> dict[str, float]:
    """Return the measures of the steps of one policy and split.

    Args:
      records: Evaluation records of kind `step`.
      known: Classes that training showed.
      distinct: Share of distinct edits, by state.
    """
    outcomes = [(record["action"], record["outcome"]) for record in records]
    outcomes = [one for one in outcomes if one[1]["kind"] != OutcomeKind.INFRASTRUCTURE_ERROR]
    patches = [outcome for action, outcome in outcomes if PATCH.search(action)]
    ran = [outcome for _, outcome in outcomes if outcome["kind"] == OutcomeKind.SCORED and outcome["diff"]]
    return {
        "valid": _share(outcome["kind"] != OutcomeKind.INVALID_ACTION for _, outcome in outcomes),
        "repaired": _share(bool(outcome.get("repairs")) for _, outcome in outcomes),
        "quoting": _share("applied" in outcome["progress"] for outcome in patches),
        "patches": len(patches),
        "distinct": statistics.fmean(distinct) if outcomes else 0.0,
        "new API": _share(bool(set(diversity.edit_kind(outcome)[1:]) - known) for outcome in ran),
    }


def _share(flags: Iterable[bool]) -> float:
    flags = list(flags)
    return sum(flags) / len(flags) if flags else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="of a run with the stages collect and evaluate")
    workdir = parser.parse_args().workdir
    files = sorted((workdir / "evaluation").glob("*.jsonl"))
    if not files:
        sys.exit(f"error: {workdir} has no evaluation/*.jsonl: name the workdir of a run that has evaluated a policy")
    known = known_classes(workdir)
    print(f"{'policy':10} {'split':9} {'valid':>6} {'repaired':>9} {'quoting':>13} {'distinct':>9} {'new API':>8}")
    for path in files:
        for split in ("held_in", "held_out"):
            steps = [one for one in jsonl.iterate(path) if one["kind"] == "step" and one["split"] == split]
            if not steps:
                continue
            found = quality(steps, known, diversity.measures(path, split)["distinct_edits"].values())
            print(
                f"{path.stem:10} {split:9} {found['valid']:6.1%} {found['repaired']:9.1%} {found['quoting']:7.1%} "
                f"({found['patches']:3}) {found['distinct']:9.1%} {found['new API']:8.1%}"
            )


if __name__ == "__main__":
    main()
