"""What a thousand workers ask of the queue's database, with executions of 10 s to 30 min, and where it breaks.

    python tools/bench/simulate_workers.py                                    SQLite in a temporary folder
    python tools/bench/simulate_workers.py --url=postgresql://user@host/database --workers=1000 --slots=8

Time is simulated, so that minutes of a fleet pass in seconds; every operation is real, through the queue's own code,
one after the other on one connection. Execution times are log-uniform. Counted, after a minute in which the fleet comes
up:

- every slot claims, renews its lease at a third of it, and hands in its outcome;
- every worker process (of `--slots` slots) reports that it is alive;
- the trainer looks for the outcomes that it waits for when one comes, at most twice a second.

`milliseconds` are medians, which other work on the machine moves less than means. `load` is the share of a second that
the operations of a simulated second take at that; `breaks_at_workers` is the size of fleet
for which that is a whole one, as if the server did one thing at a time. `connections` is what the processes hold when
all their threads talk at once, which a server must admit (`max_connections`). `burst_seconds` is how long the last of
all slots waits when all are idle and as many jobs come at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import sqlalchemy
from bench_queue import ANY, LEASE_SECONDS, OUTCOME, emptied, jobs

from environments.queue import RewardQueue, open_queue, sql
from environments.queue.base import Lease, WorkerReport
from environments.queue.postgres import AT_ONCE
from environments.worker.worker import REPORT_SECONDS

T = TypeVar("T")

WARM_UP_SECONDS = 60.0


class Meter:
    """Counts operations, the statements they are made of, and the time they take."""

    def __init__(self) -> None:
        self.on = False
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.statements = 0
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", self._count)

    def __call__(self, name: str, operation: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = operation()
        if self.on:
            self.seconds[name].append(time.perf_counter() - started)
        return result

    def _count(self, *_: Any) -> None:
        self.statements += self.on


@dataclasses.dataclass
class Fleet:
    """The actors of a simulation. An actor yields the simulated seconds until its next move."""

    queue: RewardQueue
    meter: Meter
    clock: Callable[[], float]
    dice: random.Random
    shortest: float
    longest: float
    waited_for: set[str] = dataclasses.field(default_factory=set)
    """Ids of the jobs that are out, which the trainer asks for."""
    next_look: float = 0.0

    def slot(self) -> Iterator[float]:
        yield self.dice.uniform(0.0, WARM_UP_SECONDS / 2)
        while True:
            lease = self.meter("claim", lambda: self.queue.claim("fleet", ANY, LEASE_SECONDS))
            if lease is None:
                raise RuntimeError("the simulated queue ran empty")
            self.waited_for.add(lease.job.id)
            yield from self._execute(lease)
            self.meter("complete", lambda lease=lease: self.queue.complete(lease, OUTCOME))
            if self.clock() >= self.next_look:
                found = self.meter("trainer_looks", lambda: self.queue.outcomes(self.waited_for))
                self.waited_for -= found.keys()
                self.next_look = self.clock() + max(sql.LOOK_SECONDS)

    def _execute(self, lease: Lease) -> Iterator[float]:
        end = self.clock() + self.shortest * (self.longest / self.shortest) ** self.dice.random()
        while (remaining := end - self.clock()) > 0:
            yield min(LEASE_SECONDS / 3, remaining)
            if self.clock() < end:
                self.meter("heartbeat", lambda: self.queue.heartbeat([lease]))

    def process(self, number: int, slots: int) -> Iterator[float]:
        yield self.dice.uniform(0.0, REPORT_SECONDS)
        report = WorkerReport(f"host-{number}", number, "simulated", slots, ANY)
        while True:
            self.meter("report", lambda: self.queue.report(f"process-{number}", report))
            yield REPORT_SECONDS


def simulate(
    url: str, workers: int, slots: int, simulated_seconds: float, step_seconds: tuple[float, float]
) -> dict[str, Any]:
    """One line of figures, a second of the fleet's time."""
    processes, now, meter = -(-workers // slots), [0.0], Meter()
    with emptied(url):
        pass
    # Every claim looks for leases that ran out, as it does where the last one of its process was long ago.
    sql.SWEEP_SECONDS = 0.0
    queue = open_queue(url, clock=lambda: now[0])
    fleet = Fleet(queue, meter, lambda: now[0], random.Random(0), *step_seconds)
    # Twice as many as there will be time for.
    queue.enqueue(jobs(int(2 * workers * (1 + (WARM_UP_SECONDS + simulated_seconds) / (4 * step_seconds[0])))))
    actors = [fleet.slot() for _ in range(workers)] + [fleet.process(number, slots) for number in range(processes)]
    order = itertools.count()
    agenda = [(next(actor), next(order), actor) for actor in actors]
    heapq.heapify(agenda)
    while agenda[0][0] < WARM_UP_SECONDS + simulated_seconds:
        now[0], _, actor = heapq.heappop(agenda)
        meter.on = now[0] >= WARM_UP_SECONDS
        heapq.heappush(agenda, (now[0] + next(actor), next(order), actor))
    queue.close()
    a_second = {name: len(times) / simulated_seconds for name, times in meter.seconds.items()}
    medians = {name: statistics.median(times) for name, times in meter.seconds.items()}
    load = sum(a_second[name] * medians[name] for name in medians)
    return {
        "engine": url.partition(":")[0],
        "workers": workers,
        "processes": processes,
        "a_second": {name: round(rate, 2) for name, rate in a_second.items()},
        "milliseconds": {name: round(1000 * median, 3) for name, median in medians.items()},
        "statements_a_second": round(meter.statements / simulated_seconds, 1),
        "load": round(load, 4),
        "breaks_at_workers": round(workers / load),
        "connections": processes * AT_ONCE,
        "burst_seconds": round(workers * medians["claim"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="an empty queue; default: SQLite in a temporary folder")
    parser.add_argument("--workers", type=int, nargs="+", default=[1000], help="executions at once")
    parser.add_argument("--slots", type=int, default=8, help="of them in one worker process")
    parser.add_argument("--simulated_seconds", type=float, default=120.0)
    parser.add_argument("--step_seconds", type=float, nargs=2, default=(10.0, 1800.0), help="shortest and longest")
    arguments = parser.parse_args()
    for workers in arguments.workers:
        with tempfile.TemporaryDirectory() as folder:
            url = arguments.url or f"sqlite:///{folder}/queue.db"
            figures = simulate(url, workers, arguments.slots, arguments.simulated_seconds, arguments.step_seconds)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
