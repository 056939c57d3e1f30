"""Jobs, outcomes and a clock for tests of the queue.

Not in conftest.py: child processes import this module by its name, and every folder of tests has a conftest.
"""

import contextlib
import dataclasses

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State


@dataclasses.dataclass
class Clock:
    """The queue's time, where a test turns it."""

    now: float = 1_000_000.0

    def __call__(self):
        return self.now


def job(sample=0, *, run="run", version=0, action="Action: Final Answer", **fields):
    state = State(task="iris@1", history=(), snapshot="snap", script="print()", metric=0.5)
    return Job(run=run, policy_version=version, state=state, sample=sample, action=action, **fields)


def outcome(note="", **fields):
    values = {
        "kind": OutcomeKind.SCORED,
        "observation": note,
        "snapshot": "next",
        "script": "print(1)",
        "metric_before": 0.5,
        "metric_after": 0.75,
        "scale": Scale(m_init=0.5, m_best=1.0, higher_is_better=True),
        "reward": 0.9,
        "seconds": 2.0,
    }
    return Outcome(**values | fields)


def outstanding(queue, run="run"):
    """How many jobs are queued or leased, by policy version."""
    versions = queue.status()["runs"].get(run, {}).get("outstanding_by_version", {})
    return {int(version): count for version, count in versions.items()}


def fill(folder):
    """Fill the file system of `folder`; returns the file that does it."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    return filler
