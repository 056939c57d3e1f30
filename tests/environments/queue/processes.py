"""Programs that the process tests run as processes of their own, and kill."""

import json
import os
import signal
import time

from queue_cases import job, outcome

from environments.queue import RetryPolicy, open_queue
from environments.queue.base import Capabilities


def worker(url, name, log_path, seconds):
    """Works until killed. Notes each execution before, and each accepted result after."""
    queue = open_queue(url)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with queue.watch() as added:
        while True:
            lease = queue.claim(name, Capabilities(), lease_seconds=1.0)
            if lease is None:
                added.wait(0.2)
                continue
            os.write(log, f"executed {lease.job.id}\n".encode())
            time.sleep(seconds)
            if queue.complete(lease, outcome(name)):
                os.write(log, f"accepted {lease.job.id}\n".encode())


def stopped_worker(url, connection):
    """Claims, says so, waits to be told to go on, and says whether its result was accepted."""
    queue = open_queue(url)
    lease = queue.claim("stopped", Capabilities(), lease_seconds=0.5)
    connection.send(lease.attempt)
    connection.recv()
    connection.send((queue.heartbeat([lease]) == [], queue.complete(lease, outcome("stopped"))))


def trainer(url, checkpoint_path, steps, die_at):
    """Trains on three results a step and checkpoints every second step; killed after consuming for step `die_at`."""
    queue = open_queue(url, retries=RetryPolicy(max_attempts=100))
    step, trained = 0, []
    if os.path.exists(checkpoint_path):
        with open(checkpoint_path) as file:
            step, trained = json.load(file)
    queue.rollback("run", step)
    while step < steps:
        step += 1
        jobs = [job(sample, version=step) for sample in range(3)]
        queue.enqueue(jobs)
        ids = [each.id for each in jobs]
        assert len(queue.wait(ids, 60)) == 3
        queue.consume("run", step, ids)
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        trained += ids
        if step % 2 == 0 or step == steps:
            with open(f"{checkpoint_path}.new", "w") as file:
                json.dump([step, trained], file)
            os.replace(f"{checkpoint_path}.new", checkpoint_path)
