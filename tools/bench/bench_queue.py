"""How fast the reward queue is: claims with their results a second, and what a thousand workers ask of the database.

    python tools/bench/bench_queue.py                                         SQLite in a temporary folder
    python tools/bench/bench_queue.py --url=postgresql://user@host/database   a PostgreSQL database of its own
    python tools/bench/bench_queue.py --simulate=1000                         workers with steps of 10 s to 30 min

Prints one line of JSON a measurement. The reference is `multiprocessing.Queue`, which keeps nothing, survives nothing
and leases nothing: what durability costs is the difference. `cpu_ms` is the workers' CPU time a job, which says more
than the rate where the machine is busy with other things.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from environments.queue import RewardQueue, open_queue
from environments.queue.base import Capabilities, Lease

OUTCOME = Outcome(
    kind=OutcomeKind.SCORED,
    observation="accuracy 0.93\n" * 20,
    snapshot="0" * 64,
    script="print()\n" * 50,
    metric_before=0.9,
    metric_after=0.93,
    scale=Scale(0.9, 1.0, True),
    reward=0.65,
    seconds=1.0,
)
ANY = Capabilities()
LEASE_SECONDS = 60.0
STEP_SECONDS = (10.0, 1800.0)
WORKERS = (1, 8, 32)
DEPTHS = (10_000, 100_000)
WARM_UP = 10
"""Actions before the clock starts: statements are compiled, and prepared on the server."""
CONTEXT = multiprocessing.get_context("forkserver")


def jobs(count: int) -> Iterator[Job]:
    """Jobs of about 2 KB, new ones with each call."""
    run, state = f"bench-{time.time()}", State("iris@1", (), "0" * 64, "print()\n" * 50, 0.9)
    return (Job(run, 0, state, sample, "Action: Edit Script\n" + "x = 1\n" * 200) for sample in range(count))


@contextlib.contextmanager
def emptied(url: str) -> Iterator[RewardQueue]:
    """The queue at `url`, without what an earlier measurement left."""
    queue = open_queue(url)
    for run in queue.status()["runs"]:
        queue.cancel(run)
    queue.purge(older_than_seconds=0.0)
    yield queue
    queue.close()


def on_queue(url: str) -> Callable[[], Any]:
    """One claim with its result."""
    queue = open_queue(url)
    return lambda: queue.complete(queue.claim("bench", ANY, LEASE_SECONDS), OUTCOME)


def on_reference(shared: Any) -> Callable[[], Any]:
    """A job taken out, and put back so that there is always one."""
    return lambda: shared.put(shared.get())


def act(
    make: Callable[[Any], Callable[[], Any]], argument: Any, ready: Any, go: Any, results: Any, seconds: float
) -> None:
    """A worker process: act for so long, once everyone is ready."""
    action = make(argument)
    for _ in range(WARM_UP):
        action()
    ready.release()
    go.wait()
    start, cpu, count = time.monotonic(), time.process_time(), 0
    while time.monotonic() - start < seconds:
        action()
        count += 1
    results.put((count, time.monotonic() - start, time.process_time() - cpu))


def together(make: Callable, argument: Any, workers: int, seconds: float) -> dict[str, float]:
    """Rate and CPU time of so many processes at once."""
    ready, go, results = CONTEXT.Semaphore(0), CONTEXT.Event(), CONTEXT.Queue()
    arguments = (make, argument, ready, go, results, seconds)
    processes = [CONTEXT.Process(target=act, args=arguments, daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    go.set()
    counts, walls, cpus = zip(*(results.get() for _ in processes), strict=True)
    for process in processes:
        process.terminate()
        process.join()
    return {"per_second": round(sum(counts) / max(walls), 1), "cpu_ms": round(1000 * sum(cpus) / sum(counts), 3)}


def throughput(url: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Claim + complete, by number of workers and of queued jobs, with the reference beside."""
    for depth, workers in itertools.product(DEPTHS, WORKERS):
        with emptied(url) as queue:
            queue.enqueue(jobs(depth))
            figures = together(on_queue, url, workers, seconds)
        yield {
            "measured": "claim + complete",
            "engine": url.partition(":")[0],
            "workers": workers,
            "depth": depth,
        } | figures
    for workers in WORKERS:
        shared = CONTEXT.Queue()
        for job in jobs(100):
            shared.put(job)
        figures = together(on_reference, shared, workers, seconds)
        yield {"measured": "get + put", "engine": "multiprocessing.Queue", "workers": workers, "depth": 100} | figures


def simulate(url: str, workers: int, simulated_seconds: float) -> dict[str, Any]:
    """What `workers` slots on hosts of their own ask of the database, with steps of 10 s to 30 min (log-uniform).

    Time is simulated, every operation is real: the share of a second that the operations of a simulated second take
    one after the other is the load, and `breaks_at` the number of workers at which it would be 1.
    """
    dice, clock = random.Random(0), [0.0]
    low, high = STEP_SECONDS
    with emptied(url) as queue:
        queue.close()
    queue = open_queue(url, clock=lambda: clock[0])
    queue.enqueue(jobs(int(workers * (2 + 2 * simulated_seconds / 100))))
    # (time, order, lease or None, end of its step); the workers come up over the first minute.
    order = itertools.count()
    agenda: list[tuple[float, int, Lease | None, float]] = [
        (dice.uniform(0, 60), next(order), None, 0.0) for _ in range(workers)
    ]
    heapq.heapify(agenda)
    counts, spent = {"claim": 0, "heartbeat": 0, "complete": 0}, time.monotonic()
    while agenda[0][0] < simulated_seconds:
        clock[0], _, lease, end = heapq.heappop(agenda)
        if lease is None or clock[0] >= end:
            if lease is not None:
                counts["complete"] += queue.complete(lease, OUTCOME)
            lease, end = queue.claim("bench", ANY, LEASE_SECONDS), clock[0] + low * (high / low) ** dice.random()
            counts["claim"] += 1
        else:
            counts["heartbeat"] += queue.heartbeat(lease)
        heapq.heappush(agenda, (min(clock[0] + LEASE_SECONDS / 3, end), next(order), lease, end))
    load = (time.monotonic() - spent) / simulated_seconds
    queue.close()
    per_second = {f"{name}s_a_second": round(count / simulated_seconds, 2) for name, count in counts.items()}
    figures = {"load": round(load, 4), "breaks_at": round(workers / load)}
    return {"measured": "simulation", "engine": url.partition(":")[0], "workers": workers} | per_second | figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="an empty queue; default: SQLite in a temporary folder")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--simulate", type=int, metavar="WORKERS", help="simulate so many instead")
    parser.add_argument("--simulated_seconds", type=float, default=300.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = arguments.url or f"sqlite:///{folder}/queue.db"
        if arguments.simulate:
            print(json.dumps(simulate(url, arguments.simulate, arguments.simulated_seconds)), flush=True)
            return
        for line in throughput(url, arguments.seconds):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
