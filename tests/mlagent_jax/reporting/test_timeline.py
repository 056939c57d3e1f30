"""An iteration as the report draws it, and the sentence that says what bounds it."""

import contextlib
import re
import time

import pytest

from environments.protocol import OutcomeKind
from environments.queue import open_queue
from environments.queue.base import Capabilities
from mlagent_jax.reporting.page_data import RunReader
from mlagent_jax.reporting.timeline import bound, timelines
from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.timeline import FILE

GUARANTEES = frozenset({"filesystem", "network", "processes", "privileges", "output"})


def test_parts_and_executions_are_told_from_the_start_of_the_iteration(tmp_path):
    spans = [["sampling", 100.0, 104.0], ["sampling ahead", 104.0, 109.0], ["waiting", 104.0, 108.0]]
    spans += [["update", 108.0, 110.0]]
    jsonl.replace(
        tmp_path / FILE,
        [
            {"stage": "rl", "step": step, "spans": spans if step == 5 else [["update", 1.0, 2.0]]}
            for step in range(1, 6)
        ],
    )
    runs = [("a", 103.0, 106.0), ("a", 104.0, 107.0), ("b", 90.0, 101.0), ("a", 106.5, 112.0), ("b", 111.0, 112.0)]
    executions = [{"worker": worker, "started": a, "finished": b} for worker, a, b in runs]
    told = timelines(tmp_path, {"run": "r", "executions": {"r": executions}})
    assert [each["step"] for each in told] == [3, 4, 5]
    assert (told[-1]["seconds"], told[0]["seconds"]) == (10.0, 1.0)
    assert told[-1]["lanes"] == [
        ["sampling", "span", [(0.0, 4.0)]],
        ["sampling ahead", "span", [(4.0, 9.0)]],
        ["waiting", "span", [(4.0, 8.0)]],
        ["update", "span", [(8.0, 10.0)]],
        ["a", "execution", [(3.0, 6.0), (6.5, 10.0)]],  # two slots, for two were under way at once
        ["a", "execution", [(4.0, 7.0)]],
        ["b", "execution", [(0.0, 1.0)]],
    ]
    assert timelines(tmp_path / "none", None) == []


@pytest.mark.parametrize(
    ("spans", "slots", "sentence"),
    [
        ({"sampling": [(0, 6)], "update": [(6, 10)]}, [], "Sampling takes 60% of the iteration: raise sampling.slots"),
        ({"sampling ahead": [(0, 9)], "update": [(0, 10)]}, [], "Update takes 100% .* mfu"),
        ({"update": [(0, 2)], "checkpoint": [(2, 10)]}, [], "Checkpoint takes 80% .* rl.checkpoint_every"),
        ({"update": [(0, 2)]}, [], r"Other takes 80% .*profile\.iterations"),
        ({"waiting": [(0, 8)]}, [("a", [(0, 8)]), ("a", [(1, 8)])], "2 slots are busy 94% .* more workers"),
        ({"waiting": [(0, 8)]}, [("a", [(0, 8)]), ("a", [(0, 1)])], "2 slots are busy 56% .* took 8.0 s: .*straggler"),
        ({"waiting": [(0, 8)]}, [], "does not tell of any"),
    ],
)
def test_the_largest_part_is_named_with_what_would_shorten_it(spans, slots, sentence):
    assert re.search(sentence, bound(10.0, spans, slots))


def test_the_page_has_the_executions_that_the_queue_knows(live_run, outcome):
    with contextlib.closing(open_queue(f"sqlite:///{live_run / 'queue.db'}")) as queue:
        begin = time.time()
        lease = queue.claim("worker-7", Capabilities(memory_mb=1 << 20, guarantees=GUARANTEES))
        queue.complete(lease, outcome(OutcomeKind.SCORED))
        queue.consume("live-1", 0, [lease.job.id])
    spans = [["waiting", begin - 1, time.time() + 1]]
    jsonl.replace(live_run / FILE, [{"stage": "rl", "step": 1, "spans": spans}])
    run = RunReader(live_run).read()
    (shown,) = run["timelines"]
    assert [lane[:2] for lane in shown["lanes"]] == [["waiting", "span"], ["worker-7", "execution"]]
    assert "executions" not in run["fleet"], "the page has them once"
