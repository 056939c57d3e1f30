"""The queue for people on call.

    python -m environments.queue status URL [--json]     depth, leases, attempts, dead letters, workers, rates
    python -m environments.queue retry URL [--run RUN] [--job ID ...]
    python -m environments.queue cancel URL --run RUN [--older_than_version N]
    python -m environments.queue purge URL --older_than_days D [--run RUN]
    python -m environments.queue grant URL ROLE           what a worker's PostgreSQL role needs, and no more

URL `-` stands for the environment variable MLAGENT_QUEUE, which hides a password from the list of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from environments.queue import QueueError, RewardQueue, open_engine, open_queue
from environments.queue.base import QUEUE_VARIABLE
from environments.queue.engine import parse_url

_SECONDS_A_DAY = 86400.0


def render(status: Mapping[str, Any]) -> Iterator[str]:
    """Format `RewardQueue.status()` as lines of text."""
    rates = status["executions_per_minute"]
    yield f"queue {status['queue']} (schema {status['schema_version']})"
    yield (
        f"executions a minute: {rates['last_minute']} in the last minute, {rates['last_10_minutes']:.1f} over ten; "
        f"late results discarded: {status['late_results']}"
    )
    yield f"jobs by attempts: {', '.join(f'{n}: {count}' for n, count in status['attempts'].items()) or 'none'}"
    for name, run in status["runs"].items():
        states = ", ".join(f"{run[state]} {state}" for state in ("queued", "leased", "done", "dead", "cancelled"))
        yield f"run {name}: {states}; {run['consumed']} consumed"
        if run["queued"]:
            yield f"  oldest queued for {_age(run['oldest_queued_seconds'])}"
        if run["outstanding_by_version"]:
            versions = ", ".join(f"{version}: {count}" for version, count in run["outstanding_by_version"].items())
            yield f"  out by policy version: {versions}"
    for kind, outcome in status["outcomes"].items():
        each, total = outcome["mean_seconds"], outcome["seconds"]
        yield f"outcome {kind}: {outcome['count']}, {each:.1f} s each, {total:.0f} s in all"
    for worker in status["workers"]:
        yield (
            f"worker {worker['name']}: {worker['health']}; seen {_age(worker['last_seen_seconds'])} ago, version "
            f"{worker['version']}, {worker['slots']} slots, {worker['completed']} completed, {worker['failed']} failed"
        )
    for lease in status["leases"]:
        yield (
            f"lease {lease['job'][:12]} of run {lease['run']}: {lease['worker']}, attempt {lease['attempt']}, "
            f"for {_age(lease['age_seconds'])}, {lease['remaining_seconds']:.0f} s left"
        )
    for letter in status["dead_letters"]:
        yield (
            f"dead {letter['job']} of run {letter['run']}: {letter['attempts']} attempts, "
            f"{_age(letter['age_seconds'])} ago: {letter['reason']}"
        )


def _age(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes:.0f} min" if minutes < 120 else f"{hours:.0f} h"


def _status(queue: RewardQueue, arguments: argparse.Namespace) -> None:
    found = queue.status()
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(render(found)))


def _retry(queue: RewardQueue, arguments: argparse.Namespace) -> None:
    print(f"{queue.retry(arguments.run, arguments.job)} jobs queued again")


def _cancel(queue: RewardQueue, arguments: argparse.Namespace) -> None:
    print(f"{queue.cancel(arguments.run, arguments.older_than_version)} jobs cancelled")


def _purge(queue: RewardQueue, arguments: argparse.Namespace) -> None:
    print(f"{queue.purge(arguments.older_than_days * _SECONDS_A_DAY, arguments.run)} finished jobs deleted")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m environments.queue", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("url", help=f"sqlite:///PATH, postgresql://..., or - for ${QUEUE_VARIABLE}")
        added.set_defaults(command=run)
        return added

    status = command("status", _status, "show what is queued, leased, done and dead, and who works")
    status.add_argument("--json", action="store_true", help="everything, for programs")
    retry = command("retry", _retry, "queue dead jobs again, or the finished jobs named")
    retry.add_argument("--run", help="only of this run")
    retry.add_argument("--job", action="append", default=[], help="id of a finished job; may be repeated")
    cancel = command("cancel", _cancel, "cancel queued jobs of a run; what is leased goes on")
    cancel.add_argument("--run", required=True)
    cancel.add_argument("--older_than_version", type=int, help="only those sampled by an older policy")
    purge = command("purge", _purge, "delete finished jobs; a run that still resumes needs its own")
    purge.add_argument("--older_than_days", type=float, required=True)
    purge.add_argument("--run", help="only of this run")
    grant = command("grant", None, "give a PostgreSQL role what a worker needs, and no more")
    grant.add_argument("role")
    arguments = parser.parse_args(argv)
    if arguments.url == "-":
        arguments.url = os.environ.get(QUEUE_VARIABLE, "")
    return arguments


def _grant(arguments: argparse.Namespace) -> None:
    url = parse_url(arguments.url)
    if url.get_backend_name() != "postgresql":
        raise QueueError("only PostgreSQL has roles; a SQLite file is guarded by its permissions")
    engine = open_engine(url, patience_seconds=10.0)
    try:
        engine.grant(arguments.role)
    finally:
        engine.close()
    print(f"{arguments.role} can claim, complete and report")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    arguments = _arguments(argv)
    try:
        if arguments.command is None:
            _grant(arguments)
            return 0
        queue = open_queue(arguments.url, create=False, patience_seconds=10.0)
        try:
            arguments.command(queue, arguments)
        finally:
            queue.close()
    except QueueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
