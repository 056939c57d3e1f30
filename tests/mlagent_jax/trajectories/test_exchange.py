"""Steps go to other programs and come back equal; those programs really read them."""

import dataclasses
import json
import math
import sys

import needs
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from environments.files.blobs import open_store
from environments.files.snapshots import Snapshots
from mlagent_jax.trajectories import exchange, schema
from mlagent_jax.trajectories.card import write_card
from mlagent_jax.trajectories.schema import SchemaError
from mlagent_jax.trajectories.store import TrajectoryStore, Writer
from tools import trajectories

from .steps import make_record, make_records


@pytest.fixture
def records():
    return make_records()


@pytest.fixture
def store(tmp_path, records):
    with Writer(tmp_path / "store") as writer:
        writer.append(records)
        writer.seal()
    return writer.store


def test_parquet_and_sharegpt_come_back_equal(tmp_path, records):
    exchange.export_parquet(records, tmp_path / "p")
    assert sorted(map(repr, exchange.read(tmp_path / "p"))) == sorted(map(repr, records))
    assert exchange.export_sharegpt(records, tmp_path / "g") == len(records)
    assert list(exchange.read(tmp_path / "g")) == records


def test_tables_from_before_repairs_were_recorded_are_read(tmp_path, records):
    outcome = pa.struct([field for field in schema.SCHEMA.field("outcome").type if field.name not in schema.ADDED])
    rows = [schema.to_row(record.to_dict()) for record in records]
    old = pa.schema([field.with_type(outcome) if field.name == "outcome" else field for field in schema.SCHEMA])
    (tmp_path / "old").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=old), tmp_path / "old" / "00000.parquet")
    plain = [dataclasses.replace(record, outcome=dataclasses.replace(record.outcome, repairs=())) for record in records]
    assert list(exchange.read(tmp_path / "old")) == plain == list(TrajectoryStore.open(tmp_path / "old"))


def test_hugging_face_loads_the_parquet_folder_by_split_and_what_it_writes_is_read(tmp_path, records, monkeypatch):
    datasets = needs.package("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    files = exchange.export_parquet(records, tmp_path / "p")
    write_card(TrajectoryStore(tmp_path / "p"), files)
    found = datasets.load_dataset(str(tmp_path / "p"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in found.items()} == {"train": 8, "held_out": 4}
    assert found["train"][1]["outcome"]["metric_before"] == records[1].outcome.metric_before
    assert found["train"][1]["state"]["history"] == [dataclasses.asdict(step) for step in records[1].state.history]
    found["train"].to_parquet(str(tmp_path / "theirs" / "data" / "x.parquet"))
    assert list(exchange.read(tmp_path / "theirs")) == [record for record in records if record.split == "train"]


def test_sharegpt_is_what_llama_factory_reads(tmp_path, records):
    datasets = needs.package("datasets")
    exchange.export_sharegpt(records, tmp_path / "g")
    ((_, info),) = json.loads((tmp_path / "g" / "dataset_info.json").read_text()).items()
    assert info["formatting"] == "sharegpt"
    found = datasets.load_dataset("json", data_files=str(tmp_path / "g" / info["file_name"]), cache_dir=str(tmp_path))
    for conversation, record in zip(found["train"], records, strict=True):
        turns = conversation[info["columns"]["messages"]]
        tags = info["tags"]
        assert [turn[tags["role_tag"]] for turn in turns] == [tags["user_tag"], tags["assistant_tag"]]
        assert [turn[tags["content_tag"]] for turn in turns] == [record.prompt, record.action]


def test_tensorflow_datasets_reads_it_by_index_without_tensorflow(tmp_path, store, records):
    tfds = pytest.importorskip("tensorflow_datasets")
    from mlagent_jax.trajectories import tfds_dataset

    prepared = tfds_dataset.prepare(store.folder, tmp_path / "tfds")
    steps = tfds.builder_from_directory(str(prepared.data_path)).as_data_source(split="train")
    wanted = [record for record in records if record.split == "train"]
    assert len(steps) == len(wanted)
    for place in (5, 0, 3):  # in any order
        found, record = steps[place], wanted[place]
        assert found["action"].decode() == record.action and found["step"] == record.step
        measured, after = found["outcome"]["metric_after"], record.outcome.metric_after
        assert math.isnan(measured) if after is None else measured == np.float32(after)
        seen = [text.decode() for text in found["state"]["history"]["observation"]]
        assert seen == [step.observation for step in record.state.history]
    assert "tensorflow" not in sys.modules


def test_what_is_no_export_is_refused_by_name(tmp_path):
    (tmp_path / "steps.json").write_text(json.dumps([{"conversations": [{"from": "human", "value": "hello"}]}]))
    with pytest.raises(SchemaError, match=r"conversation 1.*only exports of this program"):
        list(exchange.read(tmp_path / "steps.json"))
    with pytest.raises(SchemaError, match="holds no Parquet file"):
        list(exchange.read(tmp_path / "nothing"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SchemaError, match="is not empty"):
        exchange.export_parquet([], tmp_path / "full")


def test_workspaces_go_along_by_their_content_hash(tmp_path):
    source, target = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "train.py").write_text("x = 1\n")
    before = Snapshots(source).snapshot(tmp_path / "w")
    (tmp_path / "w" / "train.py").write_text("x = 2\n")
    after, submission = Snapshots(source).snapshot(tmp_path / "w"), source.put(b"id,y\n")
    record = make_record()
    state = dataclasses.replace(record.state, snapshot=before)
    outcome = dataclasses.replace(record.outcome, snapshot=after, submission=submission)
    exchange.copy_snapshots([dataclasses.replace(record, state=state, outcome=outcome)], source, target)
    assert Snapshots(target).read(after, "train.py") == b"x = 2\n"
    assert Snapshots(target).read(before, "train.py") == b"x = 1\n"
    assert target.get(submission) == b"id,y\n"


def test_the_command_adds_counts_and_exports_by_filters(tmp_path, store, records, capsys):
    (tmp_path / "rl.jsonl").write_text("".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in records))
    whole = tmp_path / "whole"
    assert trajectories.main(["add", str(whole), str(store.folder), str(tmp_path / "rl.jsonl")]) == 0
    assert "12 new steps of 12" in capsys.readouterr().out
    assert trajectories.main(["card", str(whole)]) == 0
    assert "| train |" in capsys.readouterr().out
    chosen = ["--format=sharegpt", "--filter", "outcomes=scored,time_limit", "--filter=min_gain=-5"]
    assert trajectories.main(["export", str(whole), str(tmp_path / "g"), *chosen]) == 0
    found = list(exchange.read(tmp_path / "g"))
    wanted = [r for r in records if r.split == "train" and r.outcome.kind in ("scored", "time_limit")]
    assert found == wanted and len(found) < 8
    for bad in (["--filter=outcome=scored"], ["--filter=outcomes=won"], ["--filter=min_gain=x"], ["--blobs=x"]):
        assert trajectories.main(["export", str(whole), str(tmp_path / "x"), *bad]) == 1
        assert capsys.readouterr().err.startswith("error: ")
