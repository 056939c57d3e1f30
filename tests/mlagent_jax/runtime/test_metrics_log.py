"""Metrics survive crashes, resumes and object stores."""

import json
import math
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mlagent_jax.runtime import jsonl, metrics
from mlagent_jax.runtime.metrics import MetricsLog


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def events(directory: epath.Path) -> list[Event]:
    """All TensorBoard events under `directory`, read back from their records."""
    found = []
    for path in sorted(directory.iterdir(), key=str):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


@pytest.fixture(params=["local", "object store"])
def workdir(request, tmp_path, monkeypatch):
    """A local folder, and one in an object store (in memory, which like a bucket holds whole objects only)."""
    if request.param == "local":
        return epath.Path(tmp_path / "run")
    store = fsspec.filesystem("memory")
    backend = type("Backend", (epath.backend._FileSystemSpecBackend,), {"fs": lambda self, path: store})()
    monkeypatch.setitem(epath.gpath._PREFIX_TO_BACKEND, "gs", backend)
    store.store.clear()
    return epath.Path("gs://bucket/run")


def test_what_is_written_is_read_back_in_order_with_stage_step_and_seconds(workdir):
    clock = Clock()
    with MetricsLog(workdir, clock) as log:
        log.write("sft", 1, {"loss": 2.5})
        clock.now += 3.5
        log.write("rl", 1, {"reward": 0.25, "kl": 0.01})
        assert log.read() == [
            {"stage": "sft", "step": 1, "seconds": 0.0, "loss": 2.5},
            {"stage": "rl", "step": 1, "seconds": 3.5, "reward": 0.25, "kl": 0.01},
        ]


def test_tensorboard_gets_the_same_scalars_with_a_folder_for_each_stage(workdir):
    with MetricsLog(workdir) as log:
        log.write("rl", 7, {"reward": 0.25, "kl": 0.5})
        scalars = {
            v.tag: (e.step, v.simple_value) for e in events(workdir / "tensorboard" / "rl") for v in e.summary.value
        }
    assert scalars == {"reward": (7, 0.25), "kl": (7, 0.5)}


def test_time_goes_on_where_an_earlier_process_ended(workdir):
    clock = Clock()
    with MetricsLog(workdir, clock) as log:
        clock.now += 60
        log.write("sft", 1, {"loss": 1.0})
    clock.now = 5000.0
    with MetricsLog(workdir, clock) as log:
        clock.now += 1
        log.write("sft", 2, {"loss": 0.9})
        assert [record["seconds"] for record in log.read()] == [60.0, 61.0]


def test_a_torn_last_line_is_dropped_and_does_not_run_into_the_next_record(workdir):
    with MetricsLog(workdir) as log:
        log.write("sft", 1, {"loss": 1.0})
    path = workdir / metrics.FILE
    path.write_text(path.read_text() + '{"stage":"sft","step":2,"lo')
    assert [record["step"] for record in metrics.read(workdir)] == [1]
    with MetricsLog(workdir) as log:
        log.write("sft", 2, {"loss": 0.5})
        assert [record["loss"] for record in log.read()] == [1.0, 0.5]


def test_rewind_forgets_the_steps_after_the_checkpoint_of_that_stage_only(workdir):
    with MetricsLog(workdir) as log:
        for step in (1, 2, 3):
            log.write("sft", step, {"loss": 1.0})
        log.write("rl", 3, {"reward": 0.0})
        assert log.rewind("sft", 1) == 2
        assert log.rewind("sft", 1) == 0
        log.write("sft", 2, {"loss": 7.0})
        assert [(record["stage"], record["step"]) for record in log.read()] == [("sft", 1), ("rl", 3), ("sft", 2)]
        starts = [e for e in events(workdir / "tensorboard" / "sft") if e.session_log.status == SessionLog.START]
    assert [event.step for event in starts] == [2]


def test_appending_to_an_object_store_rewrites_no_more_than_a_part(tmp_path, monkeypatch, workdir):
    monkeypatch.setattr(jsonl, "PART_BYTES", 300)
    path, tail, seen = workdir / "steps.jsonl", jsonl.Tail(workdir / "steps.jsonl"), []
    records = [{"step": step, "text": "x" * 80} for step in range(20)]
    for record in records:
        with jsonl.Appender(path) as file:  # also across restarts
            file.append(record)
        restarted, new = tail.new()
        seen += new
        assert (not restarted and len(path.read_bytes()) < 600) or "://" not in str(path)
    assert jsonl.read(path) == seen == records
    if "://" in str(path):
        whole = path.read_bytes()
        (path.parent / "steps.jsonl.00099").write_bytes(b"never named by the open part")
        assert jsonl.read(path) == records
        # A crash after a part was closed, before the open one names it.
        (path.parent / f"steps.jsonl.{len(list(path.parent.iterdir())) - 1:05d}").write_bytes(whole)
        assert jsonl.read(path) == records
    jsonl.replace(path, records[:3])
    restarted, new = tail.new()
    assert restarted and list(new) == jsonl.read(path) == records[:3]
    with jsonl.Appender(path) as file:
        file.append(*records[3:])
    assert jsonl.read(path) == records


def test_event_files_in_an_object_store_go_on_in_a_next_one(monkeypatch, workdir):
    monkeypatch.setattr(jsonl, "PART_BYTES", 300)
    with MetricsLog(workdir) as log:
        for step in range(20):
            log.write("rl", step, {"reward": 0.25})
    folder = workdir / "tensorboard" / "rl"
    steps = [event.step for event in events(folder) for _ in event.summary.value]
    assert steps == list(range(20))
    assert (len(list(folder.iterdir())) > 2) == ("://" in str(workdir))


def test_a_process_that_is_killed_loses_no_record(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from mlagent_jax.runtime.metrics import MetricsLog\n"
        "log = MetricsLog(sys.argv[1])\n"
        "for step in range(5):\n"
        "    log.write('rl', step, {'reward': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", program, tmp_path], cwd=root).returncode == -9
    assert [record["step"] for record in metrics.read(tmp_path)] == list(range(5))
    written = events(epath.Path(tmp_path) / "tensorboard" / "rl")
    assert [value.simple_value for event in written for value in event.summary.value] == list(range(5))


def test_scalars_that_are_not_finite_keep_the_file_valid_json_and_come_back(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("rl", 1, {"a": math.nan, "b": -math.inf, "c": math.inf})
        record = log.read()[0]
    assert math.isnan(record["a"])
    assert (record["b"], record["c"]) == (-math.inf, math.inf)
    json.loads((tmp_path / metrics.FILE).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_scalar_with_a_reserved_name_is_refused(tmp_path):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match=r"'step'.*rename"):
        log.write("rl", 1, {"step": 2.0})


def test_a_broken_line_in_the_middle_is_an_error_that_names_file_and_line(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"a":1}\n{"a":\n{"a":3}\n')
    with pytest.raises(jsonl.RecordError, match=r"records\.jsonl:2 .*delete that line"):
        jsonl.read(path)


def test_no_file_is_no_records(tmp_path):
    assert metrics.read(tmp_path) == []


def test_what_a_hostile_script_printed_can_be_written_and_read(tmp_path):
    text = "\ud800 \u2028 \x00 </script>\n"
    with jsonl.Appender(tmp_path / "x.jsonl") as file:
        file.append({"output": text}, {"output": "next"})
    assert [record["output"] for record in jsonl.read(tmp_path / "x.jsonl")] == [text, "next"]
