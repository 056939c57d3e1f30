"""Card of a store or an export: a README.md with its contents, in Hugging Face's format."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

import pyarrow as pa
from etils import epath

from mlagent_jax.runtime.files import write_whole
from mlagent_jax.trajectories.schema import VERSION
from mlagent_jax.trajectories.store import TrajectoryStore

FILE = "README.md"
COUNTED = (
    "run",
    "stage",
    "split",
    "task",
    "trajectory",
    "target",
    "outcome.kind",
    "outcome.action_name",
    "outcome.reward",
)


def write_card(store: TrajectoryStore, files: Mapping[str, str] | None = None) -> epath.Path:
    """Write the card of `store` into its folder; return its path.

    Args:
      store: Steps to count.
      files: Files of each split as a glob, for an export; default: all shards as one split.
    """
    return write_whole(store.folder / FILE, card(store.columns(*COUNTED), files or {"train": "*.parquet"}))


def card(steps: pa.Table, files: Mapping[str, str]) -> str:
    """Return the card of `steps`, a table with the columns `COUNTED`."""
    rows = steps.to_pylist()
    trajectories = {(row["run"], row["stage"], row["split"], row["task"], row["trajectory"]) for row in rows}
    rewards = [row["outcome.reward"] for row in rows if row["outcome.reward"] is not None]
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, glob in files.items():
        lines += [f"  - split: {split}", f'    path: "{glob}"']
    mean = f"; mean reward {sum(rewards) / len(rewards):.3f}" if rewards else ""
    lines += [
        "---",
        "",
        "# Recorded steps of machine-learning engineering",
        "",
        f"{len(rows)} steps of {len(trajectories)} trajectories in {len({row['task'] for row in rows})} tasks, schema "
        f"{VERSION}{mean}. One row a step: the state it was taken in, the action as text, and the outcome of its "
        "execution.",
    ]
    for title, names in (
        ("By split and outcome", ("split", "outcome.kind")),
        ("By action and outcome", ("outcome.action_name", "outcome.kind")),
        ("By task and outcome", ("task", "outcome.kind")),
    ):
        lines += ["", f"## {title}", "", *_table(rows, *names)]
    errors = sum(not row["target"] for row in rows)
    return "\n".join(
        [*lines, "", f"{errors} of the steps are deliberate errors, not to be imitated (`target` is false).", ""]
    )


def _table(rows: Sequence[Mapping[str, object]], first: str, second: str) -> list[str]:
    """Count `first` by `second`, as Markdown."""
    counts = collections.Counter((str(row[first] or "none"), str(row[second])) for row in rows)
    columns = sorted({column for _, column in counts})
    lines = [f"| {first.rpartition('.')[2]} | {' | '.join(columns)} | all |", "|---" * (len(columns) + 2) + "|"]
    for name in sorted({name for name, _ in counts}):
        cells = [counts[name, column] for column in columns]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {sum(cells)} |")
    return lines
