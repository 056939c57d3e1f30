"""Delete from a run's store what nothing needs any more: workspaces that no state leads to.

    python tools/clean_store.py WORKDIR ...              # what would be deleted
    python tools/clean_store.py WORKDIR ... --delete

Name every workdir whose runs use the store. Kept are the blobs, and all that these need, that are named by

- the expert's recorded steps (`trajectories/collect`), also those of `config.pool.trajectories`;
- the checkpoints: the states of the pool, and the groups under way;
- the queue: jobs that are out, and results that no step before the oldest checkpoint used;
- every other file of the workdir, such as evaluations.

Deleted are above all the workspaces that rl left behind: steps in `trajectories/rl.jsonl` whose states are not in the
pool. What was written within the last `--min_age_hours` stays. Stop the runs first: a workdir in use is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from environments.files.blobs import ID, Store, StoreError, open_store
from environments.files.snapshots import Snapshots
from environments.queue import QueueError, open_queue
from mlagent_jax.checkpoints.orbax import Checkpointer, CheckpointError
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.files import sole_writer
from mlagent_jax.trajectories.store import TrajectoryStore

NOT_READ = ("arrays", "store", "tasks", "tokenizer", "export")
"""Folders of a workdir that name no blobs."""


class CleanError(ValueError):
    """The store cannot be cleaned safely; the message says why."""


def workdirs_of(named: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The configs of the workdirs, and of those whose recorded steps they begin with, by workdir."""
    configs: dict[str, dict[str, Any]] = {}
    pending = list(named)
    while pending:
        workdir = pending.pop(0)
        if workdir in configs:
            continue
        path = epath.Path(workdir) / "config.json"
        if not path.exists():
            raise CleanError(f"{workdir} holds no run: give the folder that a run wrote")
        configs[workdir] = json.loads(path.read_text())
        pending += filter(None, [configs[workdir]["pool"]["trajectories"]])
    return configs


def names_in(workdir: str) -> Iterator[str]:
    """Whatever looks like a blob's id in the files of a workdir, but for rl's own steps."""
    pending = [epath.Path(workdir)]
    while pending:
        for path in pending.pop().iterdir():
            if path.is_dir():
                pending += [] if path.name in NOT_READ else [path]
            elif path.suffix != ".parquet" and path.name != "rl.jsonl" and not path.name.startswith("queue.db"):
                yield from ID.findall(path.read_bytes().decode(errors="replace"))


def steps_of(workdir: str, store: Store) -> Iterator[str]:
    """Blobs that the recorded steps of a workdir name; their states must be there, or this is another run's store."""
    folder = epath.Path(workdir) / "trajectories" / "collect"
    if not TrajectoryStore(folder).exists():
        return
    for record in TrajectoryStore(folder):
        if not store.has(record.state.snapshot):
            raise CleanError(
                f"the workspace of a recorded step in {folder} is not in {store.url}: this is not its store, or it was "
                "damaged; nothing was deleted"
            )
        yield from filter(None, (record.state.snapshot, record.outcome.snapshot, record.outcome.submission))


def oldest_step(workdir: str) -> int:
    """The first step of rl that a resume may begin with."""
    folder = epath.Path(workdir) / "checkpoints" / "rl"
    if not folder.exists():
        return 0
    with Checkpointer(folder, read_only=True) as saved:
        return min(saved.steps(), default=0)


def in_use(configs: dict[str, dict[str, Any]], store: Store) -> set[str]:
    """Ids of all blobs that a run may still need."""
    names: set[str] = set()
    steps: dict[str, int] = {}
    for workdir in configs:
        names.update(names_in(workdir), steps_of(workdir, store))
        facts = epath.Path(workdir) / "run.json"
        if facts.exists():
            steps[json.loads(facts.read_text())["name"]] = oldest_step(workdir)
    for url in {queue_of(workdir, config) for workdir, config in configs.items()} - {""}:
        with contextlib.closing(open_queue(url, create=False, store=store)) as queue:
            for text in queue.texts(steps):
                names.update(ID.findall(text))
    return Snapshots(store).in_use(names)


def queue_of(workdir: str, config: dict[str, Any]) -> str:
    """URL of a run's queue; empty where it has none."""
    own = epath.Path(workdir) / "queue.db"
    return config["workers"]["queue"] or (f"sqlite:///{os.fspath(own)}" if own.exists() else "")


def store_of(configs: dict[str, dict[str, Any]], named: Sequence[str]) -> Store:
    """The one store of all runs that are named."""
    urls = {configs[workdir]["workers"]["store"] or os.fspath(epath.Path(workdir) / "store") for workdir in named}
    if len(urls) > 1:
        raise CleanError(f"these runs have several stores ({', '.join(sorted(urls))}): clean one after the other")
    return open_store(urls.pop())


def clean(named: Sequence[str], delete: bool, min_age_seconds: float) -> str:
    """Do it; returns what to tell."""
    configs = workdirs_of(named)
    store = store_of(configs, named)
    with contextlib.ExitStack() as held:
        for workdir in named:
            held.enter_context(sole_writer(workdir, "stop it first"))
        kept = in_use(configs, store)
        told = f"store {store.url} of {', '.join(configs)}: {len(kept)} blobs are in use"
        if not delete:
            unused = [blob for blob in store.blobs() if blob.id not in kept]
            return f"{told}, {len(unused)} of {sum(each.size for each in unused) / 1e6:.1f} MB are not (--delete)"
        done = Snapshots(store).collect(kept, min_age_seconds=min_age_seconds)
    return f"{told}, {done.deleted} deleted; {done.freed_bytes / 1e6:.1f} MB freed, {done.kept_bytes / 1e6:.1f} MB kept"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="workdirs of all runs that use the store")
    parser.add_argument("--delete", action="store_true", help="delete; without it nothing is changed")
    parser.add_argument("--min_age_hours", type=float, default=1.0, help="what was written later than that stays")
    options = parser.parse_args(argv)
    try:
        print(clean(options.workdirs, options.delete, 3600.0 * options.min_age_hours))
    except (CleanError, CheckpointError, ConfigError, QueueError, StoreError) as error:
        print(f"clean_store: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
