"""The store keeps every step once, in order and equal, whatever a crash left of it."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from environments.protocol import OutcomeKind, State, digest
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.jsonl import RecordError
from mlagent_jax.trajectories.card import write_card
from mlagent_jax.trajectories.schema import ADDED, SchemaError, to_row
from mlagent_jax.trajectories.store import StoreTail, TrajectoryStore, Writer

from .steps import make_record, make_records


@pytest.fixture
def records():
    return make_records()


def written(folder, records, **options):
    with Writer(folder, **options) as store:
        for record in records:
            store.append([record])
    return TrajectoryStore.open(folder)


def test_steps_come_back_equal_and_in_order_from_shards_and_the_open_one(tmp_path, records):
    store = written(tmp_path, records, shard_bytes=4000)
    whole, journal = store.shards()
    assert len(whole) >= 2 and journal is not None
    assert list(store) == records and len(store) == len(records)
    assert list(store.iterate(5)) == records[5:]
    kinds = store.columns("task", "outcome.kind")["outcome.kind"].to_pylist()
    assert kinds == [record.outcome.kind for record in records]


def test_a_resumed_writer_adds_what_is_not_there_and_nothing_twice(tmp_path, records):
    written(tmp_path, records[:7], shard_bytes=4000)
    with Writer(tmp_path, shard_bytes=4000) as store:
        assert store.append(records) == len(records) - 7
        assert store.append(records) == 0
        store.seal()
    assert list(TrajectoryStore(tmp_path)) == records
    assert TrajectoryStore(tmp_path).shards()[1] is None
    other = [dataclasses.replace(record, run="another") for record in records]
    assert list(written(tmp_path, other)) == records + other


@pytest.mark.parametrize("crash", ["torn line", "between the file and its lines", "half a file"])
def test_what_a_crash_leaves_loses_and_doubles_nothing(tmp_path, records, crash):
    written(tmp_path, records[:5])
    journal = tmp_path / "00000.jsonl"
    lines = journal.read_bytes()
    if crash == "torn line":
        journal.write_bytes(lines + b'{"stage": "coll')
    elif crash == "half a file":
        (tmp_path / "00000.parquet.partial").write_bytes(b"PAR1")
    else:
        with Writer(tmp_path) as store:
            store.seal()
        journal.write_bytes(lines)
    assert list(TrajectoryStore(tmp_path)) == records[:5]
    assert list(written(tmp_path, records)) == records


def test_a_second_writer_is_kept_out(tmp_path):
    with Writer(tmp_path), pytest.raises(ConfigError, match="another process writes"):
        Writer(tmp_path)
    Writer(tmp_path).close()


def test_a_reader_of_a_growing_store_gets_each_step_once(tmp_path, records):
    tail = StoreTail(tmp_path / "s")
    assert tail.new()[0] is False
    seen = []
    with Writer(tmp_path / "s", shard_bytes=4000) as store:
        for first in range(0, len(records), 2):
            store.append(records[first : first + 2])
            restarted, new = tail.new()
            seen += [data["trajectory"] * 4 + data["step"] for data in new]
            assert not restarted
        store.seal()
    assert [*seen, *tail.new()[1]] == list(range(len(records)))


def test_text_that_is_no_unicode_is_stored_as_far_as_it_is(tmp_path):
    record = make_record()
    store = written(tmp_path, [dataclasses.replace(record, action="a\ud800b")])
    with Writer(tmp_path) as writer:
        writer.seal()
    assert [found.action for found in store] == ["a?b"]


def test_a_folder_without_steps_and_a_foreign_table_are_refused(tmp_path, records):
    with pytest.raises(ConfigError, match="holds no recorded steps: the stage 'collect'"):
        TrajectoryStore.open(tmp_path / "collect")
    (tmp_path / "collect.jsonl").touch()
    with pytest.raises(ConfigError, match=r"older version.*trajectories\.py add"):
        TrajectoryStore.open(tmp_path / "collect")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    for read in (list, lambda store: store.columns("task")):
        with pytest.raises(RecordError, match=r"metrics\.jsonl, record 1 is not a recorded step"):
            read(TrajectoryStore.open(tmp_path))
    with Writer(tmp_path / "new") as store:
        store.append(records)
        store.seal()
    table = pq.read_table(tmp_path / "new" / "00000.parquet").drop_columns(["outcome"])
    pq.write_table(table, tmp_path / "new" / "00000.parquet")
    with pytest.raises(SchemaError, match="no column 'outcome'"):
        list(TrajectoryStore(tmp_path / "new"))


def test_the_card_counts_by_split_task_action_and_outcome(tmp_path, records):
    error = make_record(9, 0, kind=OutcomeKind.SCRIPT_ERROR, target=False)
    card = write_card(written(tmp_path, [*records, error])).read_text()
    assert "13 steps of 4 trajectories in 1 tasks" in card
    assert "1 of the steps are deliberate errors" in card
    lines = [line for line in card.splitlines() if line.startswith("| wine")]
    counts = {kind: sum(r.outcome.kind is kind for r in [*records, error]) for kind in OutcomeKind}
    assert lines == [f"| wine | {' | '.join(str(counts[k]) for k in sorted(counts) if counts[k])} | 13 |"]


def test_kinds_of_steps_come_back_and_a_table_written_before_there_were_any_is_read(tmp_path, records):
    state = dataclasses.replace(records[0].state, operator="combine", other="x = 1", memory=("tried",))
    scale = dataclasses.replace(records[0].outcome.scale, noise=0.25)
    outcome = dataclasses.replace(records[0].outcome, scale=scale)
    kind = dataclasses.replace(records[0], state=state, outcome=outcome)
    assert list(written(tmp_path / "new", [kind], shard_bytes=1)) == [kind]
    rows = [to_row(record.to_dict()) for record in records]
    for row in rows:
        row["outcome"] = {**row["outcome"], "scale": {k: v for k, v in row["outcome"]["scale"].items() if k != "noise"}}
        row["state"] = {name: value for name, value in row["state"].items() if name not in ADDED}
    (tmp_path / "old").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "old" / "00000.parquet")
    assert list(TrajectoryStore.open(tmp_path / "old")) == records


def test_a_state_recorded_before_there_were_kinds_keeps_its_id(records):
    state = records[5].state
    before = {name: value for name, value in dataclasses.asdict(state).items() if name not in ADDED}
    assert state.id == digest(before)
    assert State.from_dict(before) == state
    assert dataclasses.replace(state, operator="draft").id != state.id
