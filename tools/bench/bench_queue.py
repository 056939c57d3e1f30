"""How fast the reward queue is: claims with their results a second, beside two references.

    python tools/bench/bench_queue.py                                         SQLite in a temporary folder
    python tools/bench/bench_queue.py --url=postgresql://user@host/database   a PostgreSQL database of its own

Prints one line of JSON a measurement: 1, 8 and 32 workers, with 10,000 and 100,000 jobs queued. `processes` are
processes that claim one job, hand in its result, and again: the dearest way to have so many workers. `slots` are those
of `environments.worker.Worker` as it is deployed, `--slots` of them in a process, with executions that take no time: it
starts a thread a job, renews leases and reports.

The references are `multiprocessing.Queue`, which keeps nothing, survives nothing and leases nothing, and Redis Streams,
with every write on disk before it is acknowledged, as in PostgreSQL; it needs `redis-server` and `pip install
'.[bench]'`. `cpu_ms` is the workers' CPU time a job, and with `--server_pid` that of the server too: they say more than
the rate where the machine is busy with other things. `tools/bench/simulate_workers.py` shows what a thousand workers
ask of the database.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State, canonical_json
from environments.queue import RewardQueue, open_queue
from environments.queue.base import Capabilities
from environments.worker.worker import Worker

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
WORKERS = (1, 8, 32)
DEPTHS = (10_000, 100_000)
WARM_UP = 10
"""Actions before the clock starts: statements are compiled, and prepared on the server."""
PATIENCE_SECONDS = 600.0
"""For worker processes to start, on a machine that is busy."""
NO_REDIS = "not measured: install redis-server (Debian: `apt-get install redis-server`) and `pip install '.[bench]'`"
CONTEXT = multiprocessing.get_context("forkserver")
# What is imported once need not be by each of 32 processes.
CONTEXT.set_forkserver_preload(["__main__", "environments.queue.sqlite", "environments.queue.postgres"])


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


def on_redis(socket: str) -> Callable[[], Any]:
    """One entry read by a member of a group, its result added and the entry acknowledged."""
    import redis

    client, name, result = redis.Redis(unix_socket_path=socket), uuid.uuid4().hex, canonical_json(OUTCOME.to_dict())

    def action() -> None:
        ((_, ((entry, fields),)),) = client.xreadgroup("workers", name, {"jobs": ">"}, count=1)
        job = Job.from_dict(json.loads(fields[b"job"]))
        with client.pipeline(transaction=True) as both:
            both.xadd("outcomes", {"job": job.id, "outcome": result}).xack("jobs", "workers", entry).execute()

    return action


@contextlib.contextmanager
def redis_server() -> Iterator[tuple[str, int]]:
    """A server of our own, durable: its socket and process id."""
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/socket"
        options = ["--port", "0", "--unixsocket", socket, "--dir", folder, "--appendonly", "yes", "--save", ""]
        process = subprocess.Popen(
            ["redis-server", *options, "--appendfsync", "always"], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        try:
            end = time.monotonic() + PATIENCE_SECONDS
            while not Path(socket).exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"redis-server did not start (status {process.returncode})")
                time.sleep(0.05)
            yield socket, process.pid
        finally:
            process.terminate()
            process.wait()


def cpu_seconds(pid: int | None) -> float:
    """CPU time of a server and of its children, those that ended included."""
    if pid is None:
        return 0.0
    server = psutil.Process(pid)
    times = server.cpu_times()
    total = sum(times)
    for child in server.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += sum(child.cpu_times()[:2])
    return total


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
    # Until terminated: a server's process that ends with its client would escape whoever adds up their times just then.
    time.sleep(PATIENCE_SECONDS)


def serve(url: str, slots: int, ready: Any, go: Any, results: Any, seconds: float) -> None:
    """A worker process as it is deployed: `slots` slots, whose executions take no time."""
    queue, counted, warm = open_queue(url), itertools.count(), threading.Event()

    def take(_: Job) -> Outcome:
        # The first of a slot waits until everyone is ready.
        if next(counted) == WARM_UP * slots:
            warm.set()
        if warm.is_set():
            go.wait()
        return OUTCOME

    worker = Worker(queue, take, slots, ANY, lease_seconds=LEASE_SECONDS)
    threading.Thread(target=worker.run, daemon=True).start()
    warm.wait()
    ready.release()
    go.wait()
    start, cpu, before = time.monotonic(), time.process_time(), worker.completed
    time.sleep(seconds)
    results.put((worker.completed - before, time.monotonic() - start, time.process_time() - cpu))
    time.sleep(PATIENCE_SECONDS)


def together(
    program: Callable[..., None],
    arguments: tuple[Any, ...],
    processes: int,
    seconds: float,
    server_pid: int | None = None,
) -> dict[str, float]:
    """Rate and CPU time of so many processes at once, and that of the server that they use."""
    ready, go, results = CONTEXT.Semaphore(0), CONTEXT.Event(), CONTEXT.Queue()
    arguments = (*arguments, ready, go, results, seconds)
    started = [CONTEXT.Process(target=program, args=arguments, daemon=True) for _ in range(processes)]
    for process in started:
        process.start()
    for _ in started:
        if not ready.acquire(timeout=PATIENCE_SECONDS):
            raise RuntimeError(f"a worker process did not start in {PATIENCE_SECONDS:.0f} s")
    server = -cpu_seconds(server_pid)
    go.set()
    counts, walls, cpus = zip(*(results.get(timeout=seconds + PATIENCE_SECONDS) for _ in started), strict=True)
    server += cpu_seconds(server_pid)
    for process in started:
        process.terminate()
        process.join()
    done = sum(counts)
    figures = {"per_second": round(done / max(walls), 1), "cpu_ms": round(1000 * sum(cpus) / done, 3)}
    return figures | ({"server_cpu_ms": round(1000 * server / done, 3)} if server_pid else {})


def on_ours(
    url: str, depth: int, counts: Sequence[int], slots: int, seconds: float, server_pid: int | None
) -> Iterator[dict[str, Any]]:
    """Claim + complete with `depth` jobs queued."""
    engine = url.partition(":")[0]
    with emptied(url) as queue:
        for workers in counts:
            for name, program, arguments, processes in (
                ("processes", act, (on_queue, url), workers),
                ("slots", serve, (url, min(slots, workers)), -(-workers // slots)),
            ):
                queue.enqueue(jobs(depth - sum(run["queued"] for run in queue.status()["runs"].values())))
                figures = together(program, arguments, processes, seconds, server_pid)
                measured = {"measured": "claim + complete", "engine": engine, name: workers, "depth": depth}
                yield measured | figures


def on_references(depth: int, counts: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """The same with what is no reward queue."""
    for workers in counts:
        shared = CONTEXT.Queue()  # A new one: who is terminated may have held its lock.
        shared.cancel_join_thread()
        for job in jobs(depth):
            shared.put(job)
        figures = together(act, (on_reference, shared), workers, seconds)
        yield {
            "measured": "get + put",
            "engine": "multiprocessing.Queue",
            "processes": workers,
            "depth": depth,
        } | figures
    try:
        import redis
    except ModuleNotFoundError:
        redis = None
    if redis is None or shutil.which("redis-server") is None:
        yield {"measured": NO_REDIS, "engine": "Redis Streams"}
        return
    with redis_server() as (socket, pid), redis.Redis(unix_socket_path=socket) as client:
        client.xgroup_create("jobs", "workers", id="0", mkstream=True)
        for workers in counts:
            missing = depth - (client.xlen("jobs") - (client.xinfo_groups("jobs")[0]["entries-read"] or 0))
            with client.pipeline(transaction=False) as pipeline:
                for job in jobs(missing):
                    pipeline.xadd("jobs", {"job": canonical_json(job.to_dict())})
                pipeline.execute()
            figures = together(act, (on_redis, socket), workers, seconds, pid)
            yield {"measured": "read + ack", "engine": "Redis Streams", "processes": workers, "depth": depth} | figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="an empty queue; default: SQLite in a temporary folder")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS, help="jobs queued")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="at once")
    parser.add_argument("--slots", type=int, default=8, help="of a worker process, where workers are slots")
    parser.add_argument("--server_pid", type=int, help="main process of the database server, where it runs here")
    parser.add_argument("--references", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = arguments.url or f"sqlite:///{folder}/queue.db"
        for depth in arguments.depths:
            for line in on_ours(
                url, depth, arguments.workers, arguments.slots, arguments.seconds, arguments.server_pid
            ):
                print(json.dumps(line), flush=True)
            if arguments.references:
                for line in on_references(depth, arguments.workers, arguments.seconds):
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
