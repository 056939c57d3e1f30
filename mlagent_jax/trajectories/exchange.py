"""Export of recorded steps to other formats, and import from them.

Parquet: a folder that Hugging Face `datasets` loads (`load_dataset(FOLDER)`), one or more files per split, all columns.
ShareGPT: a folder with `steps.json`, one conversation of two messages per step, and the `dataset_info.json` that
LLaMA-Factory reads. Each conversation also contains the whole step (`step`, JSON text, which LLaMA-Factory ignores), so
that it can be imported again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow.parquet as pq
from etils import epath

from environments.files.blobs import Store
from environments.files.snapshots import Snapshots
from environments.protocol import canonical_json
from mlagent_jax.runtime import jsonl
from mlagent_jax.trajectories import schema
from mlagent_jax.trajectories.record import Record
from mlagent_jax.trajectories.schema import SchemaError
from mlagent_jax.trajectories.store import TrajectoryStore, write_parquet

ROWS_PER_FILE = 20_000
SHAREGPT_FILE, SHAREGPT_INFO, SHAREGPT_NAME = "steps.json", "dataset_info.json", "mlagent_steps"


def export_parquet(records: Iterable[Record], folder: epath.PathLike) -> dict[str, str]:
    """Write records to an empty folder, by split; return the files of each split as a glob."""
    folder = _empty(folder)
    shards: dict[str, list[Record]] = {}
    written: dict[str, int] = {}

    def write(split: str) -> None:
        number = written.get(split, 0)
        write_parquet(folder / f"{split}-{number:05d}.parquet", schema.to_table(shards.pop(split)))
        written[split] = number + 1

    for record in records:
        shard = shards.setdefault(record.split, [])
        shard.append(record)
        if len(shard) == ROWS_PER_FILE:
            write(record.split)
    for split in list(shards):
        write(split)
    return {split: f"{split}-*.parquet" for split in written}


def import_parquet(folder: epath.PathLike) -> Iterator[Record]:
    """Yield records of the Parquet files in a folder and its subfolders: an export, or a version of one by another
    tool.

    Raises:
      SchemaError: There is no file, or one with other columns.
    """
    folder = epath.Path(folder)
    paths = sorted((*folder.glob("*.parquet"), *folder.glob("*/*.parquet")), key=str)
    if not paths:
        raise SchemaError(f"{folder} holds no Parquet file: name the folder of a store or of an export")
    for path in paths:
        with path.open("rb") as source:
            file = pq.ParquetFile(source)
            schema.checked(file.schema_arrow, str(path))
            for batch in file.iter_batches(256, columns=schema.SCHEMA.names, use_threads=False):
                yield from map(schema.from_row, batch.to_pylist())


def export_sharegpt(records: Iterable[Record], folder: epath.PathLike) -> int:
    """Write records to an empty folder as conversations; return their number."""
    folder = _empty(folder)
    count = 0
    with (folder / SHAREGPT_FILE).open("w") as file:
        file.write("[")
        for count, record in enumerate(records, 1):
            messages = [("human", record.prompt), ("gpt", record.action)]
            conversation = {"conversations": [{"from": role, "value": text} for role, text in messages]}
            whole = canonical_json(_without_messages(record)).encode("utf-8", "replace").decode()
            file.write(("," if count > 1 else "") + "\n" + json.dumps(conversation | {"step": whole}))
        file.write("\n]\n")
    info = {"file_name": SHAREGPT_FILE, "formatting": "sharegpt", "columns": {"messages": "conversations"}}
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
    (folder / SHAREGPT_INFO).write_text(json.dumps({SHAREGPT_NAME: info | {"tags": tags}}, indent=1) + "\n")
    return count


def import_sharegpt(folder: epath.PathLike) -> Iterator[Record]:
    """Yield records of a folder that `export_sharegpt` wrote, or of its JSON file; edited messages replace the
    originals.

    Raises:
      SchemaError: It holds no such conversations.
    """
    path = epath.Path(folder)
    path = path / SHAREGPT_FILE if path.is_dir() else path
    try:
        conversations = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SchemaError(f"{path} is no ShareGPT JSON ({error}): name the folder of an export") from error
    for number, conversation in enumerate(conversations, 1):
        try:
            messages = {message["from"]: message["value"] for message in conversation["conversations"]}
            data = json.loads(conversation["step"]) | {"prompt": messages["human"], "action": messages["gpt"]}
            yield Record.from_dict(data)
        except (KeyError, TypeError, ValueError) as error:
            raise SchemaError(
                f"{path}, conversation {number}: {error!r}; a step needs its state and outcome, which only exports "
                "of this program have, in the field `step`"
            ) from error


def import_lines(path: epath.PathLike) -> Iterator[Record]:
    """Yield records of a JSON-lines file, such as a run's own steps in `trajectories/rl.jsonl`."""
    return map(Record.from_dict, jsonl.iterate(path))


def read(source: epath.PathLike) -> Iterator[Record]:
    """Yield records of a store, a folder or a file of any of these kinds.

    Raises:
      SchemaError: It is none of them.
    """
    path = epath.Path(source)
    if path.suffix == ".jsonl":
        return import_lines(path)
    if path.suffix == ".json" or (path / SHAREGPT_FILE).exists():
        return import_sharegpt(path)
    store = TrajectoryStore(path)
    return iter(store) if store.exists() else import_parquet(path)


def copy_snapshots(records: Iterable[Record], source: Store, target: Store) -> int:
    """Copy the records' submissions and workspaces before and after each step; return the number of blobs.

    Raises:
      StoreError: A blob is not in `source`, or `target` cannot store it.
    """
    done: set[str] = set()

    def copy(blob: str) -> None:
        if blob not in done:
            done.add(blob)
            target.put(source.get(blob))

    snapshots = Snapshots(source)
    for record in records:
        for snapshot in {record.state.snapshot, record.outcome.snapshot} - done:
            for entry in snapshots.entries(snapshot):
                if entry.blob:
                    copy(entry.blob)
            copy(snapshot)
        if record.outcome.submission:
            copy(record.outcome.submission)
    return len(done)


def _without_messages(record: Record) -> dict[str, Any]:
    data = record.to_dict()
    return {name: value for name, value in data.items() if name not in ("prompt", "action")}


def _empty(folder: epath.PathLike) -> epath.Path:
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SchemaError(f"{folder} is not empty: name a new folder")
    return folder
