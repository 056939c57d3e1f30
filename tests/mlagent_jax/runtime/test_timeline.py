"""Spans of a training loop, and the trace of a chosen step, which profilers open."""

import gzip
import json
import threading

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.timeline import FILE, Timeline
from mlagent_jax.settings.schema import default_config, freeze


def test_spans_of_all_threads_are_told_by_iteration(tmp_path):
    timeline = Timeline(epath.Path(tmp_path / FILE), tmp_path / "profile", {})

    def beside():
        with timeline.span("sampling ahead"):
            pass

    for step in (1, 2):
        timeline.begin("rl", step)
        thread = threading.Thread(target=beside)
        with timeline.span("update"):
            thread.start()
            thread.join()
        timeline.end("rl", step)
    timeline.end("sft", 1)  # without spans
    timeline.close()
    records = jsonl.read(tmp_path / FILE)
    assert [(r["stage"], r["step"], [name for name, *_ in r["spans"]]) for r in records] == [
        ("rl", 1, ["sampling ahead", "update"]),
        ("rl", 2, ["sampling ahead", "update"]),
    ]
    assert all(start <= end for r in records for _, start, end in r["spans"])
    assert not (tmp_path / "profile").exists()


def test_a_chosen_step_leaves_a_trace_with_the_spans_and_the_programs(tmp_path):
    timeline = Timeline(None, tmp_path, {"rl": {2}})

    @jax.jit
    def scored(x):
        return (x @ x).sum()

    scored(jnp.ones((8, 8))).block_until_ready()
    for step in (1, 2, 3):
        timeline.begin("rl", step)
        with timeline.span("update"):
            scored(jnp.ones((8, 8))).block_until_ready()
        timeline.end("rl", step)
    timeline.close()
    assert [path.name for path in tmp_path.iterdir()] == ["rl-2"]
    (perfetto,) = tmp_path.rglob("perfetto_trace.json.gz")
    assert list(perfetto.parent.glob("*.xplane.pb")), "what TensorBoard reads"
    names = {event.get("name", "") for event in json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]}
    assert "update" in names and any("scored" in name for name in names)


def test_steps_to_trace_are_numbers_from_1():
    config = default_config()
    config.profile.iterations = ("3,4",)
    assert freeze(config).profile.numbers("iterations") == {3, 4}
    config.profile.iterations = ("0",)
    with pytest.raises(ConfigError, match=r"config\.profile\.iterations names '0'"):
        freeze(config)
