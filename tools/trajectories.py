"""Stores of recorded steps: what is in one, more steps into it, and out of it for other programs.

    python tools/trajectories.py card STORE                      # counts by task, action and outcome
    python tools/trajectories.py add STORE SOURCE...             # steps of other stores, exports and rl.jsonl files
    python tools/trajectories.py export STORE FOLDER --format=parquet      # for Hugging Face datasets; sharegpt, tfds

A run's workdir stands for its own store, `trajectories/collect` in it. SOURCE may be a store, a folder of Parquet
files, a ShareGPT export of ours or a file of JSON lines. A step that is there already is not added again. `--imitated`
exports only what sft would learn from; `--filter FIELD=VALUE` likewise, with fields of `config.filter` set.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from etils import epath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from environments.files.blobs import StoreError, open_store
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.jsonl import RecordError
from mlagent_jax.settings.schema import default_config, freeze
from mlagent_jax.sft.filters import imitated
from mlagent_jax.trajectories import exchange
from mlagent_jax.trajectories.card import write_card
from mlagent_jax.trajectories.record import Record
from mlagent_jax.trajectories.schema import SchemaError
from mlagent_jax.trajectories.store import TrajectoryStore, Writer


def add(store: str, sources: Sequence[str]) -> str:
    """Append the steps of all sources to a store, and write its card."""
    with Writer(store) as writer:
        new = 0
        for source in sources:
            records = exchange.read(_store(source))
            while some := list(itertools.islice(records, 256)):
                new += writer.append(some)
        writer.seal()
        return f"{new} new steps of {len(writer.store)}; {write_card(writer.store)}"


def export(chosen: Iterable[Record], folder: str, kind: str) -> str:
    """Write steps in another format."""
    if kind == "sharegpt":
        return f"{exchange.export_sharegpt(chosen, folder)} conversations in {folder}/{exchange.SHAREGPT_FILE}"
    files = exchange.export_parquet(chosen, folder)
    card = write_card(TrajectoryStore(folder), files)
    return f"{', '.join(files.values())} in {folder}; {card}"


def export_tfds(store: str, folder: str) -> str:
    """Write a whole store as a data set of tensorflow-datasets."""
    try:
        from mlagent_jax.trajectories import tfds_dataset
    except ModuleNotFoundError as error:
        raise ConfigError(f"--format=tfds needs {error.name}: pip install -c constraints.txt -e '.[tfds]'") from error

    builder = tfds_dataset.prepare(store, folder)
    counts = ", ".join(f"{name} {split.num_examples}" for name, split in builder.info.splits.items())
    return f"{counts}; read it with tfds.builder_from_directory({str(builder.data_path)!r}).as_data_source()"


def _store(folder: str) -> str:
    """The store of a run where `folder` is its workdir, or `trajectories` in it; else `folder` itself."""
    for within in (epath.Path(folder) / "trajectories" / "collect", epath.Path(folder) / "collect"):
        if within.is_dir():
            return str(within)
    return folder


def _chosen(store: TrajectoryStore, only_imitated: bool, settings: Sequence[str]) -> Iterable[Record]:
    config = default_config()
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in config.filter:
            raise ConfigError(f"--filter {name} is no field; write FIELD=VALUE with one of {', '.join(config.filter)}")
        kind = type(config.filter[name])
        config.filter[name] = value.lower() == "true" if kind is bool else kind([value] if kind is tuple else value)
    filters = freeze(config).filter
    return imitated(store, filters) if only_imitated or settings else iter(store)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    counting = commands.add_parser("card", help="write and print what is in a store")
    counting.add_argument("store")
    adding = commands.add_parser("add", help="append steps from elsewhere")
    adding.add_argument("store")
    adding.add_argument("sources", nargs="+")
    exporting = commands.add_parser("export", help="write a store in another format")
    exporting.add_argument("store")
    exporting.add_argument("folder", help="a new one")
    exporting.add_argument("--format", choices=("parquet", "sharegpt", "tfds"), default="parquet")
    exporting.add_argument("--imitated", action="store_true", help="only the steps that sft would learn from")
    exporting.add_argument("--filter", action="append", default=[], metavar="FIELD=VALUE", help="of config.filter")
    exporting.add_argument("--blobs", metavar="URL", help="copy the workspaces that the steps name from this store ...")
    exporting.add_argument("--blobs_to", metavar="URL", help="... to this one")
    options = parser.parse_args(argv)
    try:
        if options.command == "add":
            print(add(options.store, options.sources))
            return 0
        options.store = _store(options.store)
        store = TrajectoryStore.open(options.store)
        if options.command == "card":
            print(write_card(store).read_text())
            return 0
        if bool(options.blobs) != bool(options.blobs_to):
            raise ConfigError("--blobs and --blobs_to go together: from where workspaces are copied, and where to")
        if options.format == "tfds" and (options.imitated or options.filter):
            raise ConfigError("--format=tfds takes a whole store: export --format=parquet first, and that folder then")
        if options.format == "tfds":
            print(export_tfds(options.store, options.folder))
        else:
            print(export(_chosen(store, options.imitated, options.filter), options.folder, options.format))
        if options.blobs:
            stores = open_store(options.blobs), open_store(options.blobs_to)
            copied = exchange.copy_snapshots(_chosen(store, options.imitated, options.filter), *stores)
            print(f"{copied} blobs in {options.blobs_to}")
    except (ConfigError, RecordError, SchemaError, StoreError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
