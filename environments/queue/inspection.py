"""Inspection of a queue: its status for people, and the reason why no results arrive."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, func, select

from environments.protocol import Requirements
from environments.queue import schema
from environments.queue.base import Capabilities
from environments.queue.schema import CANCELLED, DEAD, DONE, LEASED, QUEUED, jobs, workers

_STEPS, _EXECUTIONS = 3, 2000
"""Newest training steps whose executions are told, and the most of them."""
_LISTED = 50
"""Maximum number of leases and dead letters shown, oldest leases and newest dead letters first."""


def status(connection: Connection, now: ColumnElement[float]) -> dict[str, Any]:
    """Return all data of `python -m environments.queue status`, as JSON; times are ages in seconds, but those of
    executions, which are seconds since the epoch by the database's clock."""
    totals = connection.execute(
        select(
            func.coalesce(func.sum(jobs.c.late_results), 0).label("late"),
            func.count().filter(schema.finished, jobs.c.finished_at > now - 60.0).label("minute"),
            func.count().filter(schema.finished, jobs.c.finished_at > now - 600.0).label("ten_minutes"),
        )
    ).one()
    attempts = select(jobs.c.attempts, func.count()).group_by(jobs.c.attempts).order_by(jobs.c.attempts)
    return {
        "runs": _runs(connection, now),
        "attempts": {str(attempt): count for attempt, count in connection.execute(attempts)},
        "late_results": int(totals.late),
        "executions_per_minute": {"last_minute": totals.minute, "last_10_minutes": totals.ten_minutes / 10},
        "outcomes": _outcomes(connection),
        "executions": _executions(connection),
        "leases": _leases(connection, now),
        "dead_letters": _dead_letters(connection, now),
        "workers": [_worker(row) for row in _workers(connection, now)],
    }


def _executions(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """Return worker and times of the results that the newest training steps of each run used."""
    newest = select(jobs.c.run, func.max(jobs.c.consumed_step).label("step")).where(schema.consumed)
    found: dict[str, list[dict[str, Any]]] = {}
    for run, step in connection.execute(newest.group_by(jobs.c.run)).all():
        columns = (jobs.c.worker, jobs.c.consumed_step, jobs.c.leased_at, jobs.c.finished_at)
        used = (jobs.c.run == run, schema.consumed, jobs.c.consumed_step > step - _STEPS, jobs.c.worker.is_not(None))
        rows = connection.execute(select(*columns).where(*used).order_by(jobs.c.leased_at.desc()).limit(_EXECUTIONS))
        found[run] = [
            {"worker": row.worker, "step": row.consumed_step, "started": row.leased_at, "finished": row.finished_at}
            for row in rows
        ]
    return found


def silence(connection: Connection, now: ColumnElement[float], run: str, silence_seconds: float) -> str:
    """Return why no results of `run` arrive; empty if all is well or it is too early to tell."""
    in_run = jobs.c.run == run
    waiting = connection.execute(
        select(func.count().label("count"), (now - func.min(jobs.c.enqueued_at)).label("age")).where(
            in_run, schema.outstanding
        )
    ).one()
    if not waiting.count or waiting.age < silence_seconds:
        return ""
    everyone = _workers(connection, now)
    alive = [row for row in everyone if row.age < silence_seconds and not row.health.startswith("stopped")]
    if not alive:
        newest = everyone[0] if everyone else None
        last = (
            f"the last, {newest.name}, was seen {newest.age:.0f} s ago ({newest.health})" if newest else "none ever was"
        )
        return (
            f"{waiting.count} jobs of run {run!r} wait and no worker is alive; {last}. Start one: "
            "`python -m environments.worker --queue=URL --tasks=DIR --store=URL`"
        )
    last_result = connection.scalar(select(now - func.max(jobs.c.finished_at)).where(in_run, schema.finished))
    if last_result is not None and last_result < silence_seconds:
        return ""
    seconds = waiting.age if last_result is None else min(waiting.age, last_result)
    return (
        f"nothing of run {run!r} came back for {seconds:.0f} s, with {waiting.count} jobs out and {len(alive)} workers "
        f"alive: {_likely_cause(connection, run, alive)}"
    )


def _likely_cause(connection: Connection, run: str, alive: list[Row]) -> str:
    ill = [row for row in alive if row.health not in ("ok", "draining")]
    if ill:
        return f"worker {ill[0].name} says: {ill[0].health}"
    offers = [Capabilities.from_dict(json.loads(row.capabilities)) for row in alive]
    asked = select(schema.requirements.c.body).where(
        schema.requirements.c.id.in_(select(jobs.c.requirements).where(jobs.c.run == run, schema.queued))
    )
    for body in connection.scalars(asked):
        try:
            required = Requirements.from_dict(json.loads(body))
        except ValueError as error:
            return f"what its jobs require cannot be read: {error}"
        lacking = [offer.lacking(required) for offer in offers]
        if all(lacking):
            return f"no worker offers what its jobs require: {'; '.join(min(lacking, key=len))}"
    reason = _last_failure(connection, run)
    return f"the last attempt failed: {reason}" if reason else "executions may take longer than the time allowed here"


def failures(connection: Connection, run: str) -> str:
    """Return number and last reason of the jobs of `run` that failed and are retried; empty if there are none."""
    counts = connection.execute(
        select(func.count().label("out"), func.count(jobs.c.reason).label("failed")).where(
            jobs.c.run == run, schema.outstanding
        )
    ).one()
    if not counts.failed:
        return ""
    reason = _last_failure(connection, run)
    return f"{counts.failed} of {counts.out} jobs that are out failed and are tried again; the last: {reason}"


def _last_failure(connection: Connection, run: str) -> str | None:
    """Return the reason of the newest failed attempt of an unfinished job of `run`."""
    failed = (
        select(jobs.c.reason)
        .where(jobs.c.run == run, schema.outstanding, jobs.c.reason.is_not(None))
        .order_by(jobs.c.ready_at.desc())
        .limit(1)
    )
    return connection.scalar(failed)


def why_not_consumed(connection: Connection, run: str, step: int, refused: Sequence[str]) -> str:
    """Explain why a training step cannot use the results of the jobs `refused`."""
    row = connection.execute(select(jobs).where(jobs.c.id == refused[0])).one_or_none()
    if row is None:
        why = "it was never enqueued"
    elif row.run != run:
        why = f"it belongs to run {row.run!r}"
    elif row.consumed_step is not None:
        why = f"step {row.consumed_step} used it; after a resume, call `rollback` with the checkpoint's step first"
    else:
        why = f"it is {row.state}; wait for its outcome first"
    return f"step {step} of run {run!r} cannot consume {len(refused)} results, job {refused[0]} for one: {why}"


def _runs(connection: Connection, now: ColumnElement[float]) -> dict[str, Any]:
    counts = {state: func.count().filter(jobs.c.state == state) for state in (QUEUED, LEASED, DONE, DEAD, CANCELLED)}
    columns = [column.label(state) for state, column in counts.items()]
    columns.append(func.count(jobs.c.consumed_step).label("consumed"))
    columns.append((now - func.min(case((schema.queued, jobs.c.enqueued_at)))).label("oldest_queued_seconds"))
    rows = connection.execute(select(jobs.c.run, *columns).group_by(jobs.c.run).order_by(jobs.c.run)).mappings()
    runs = {
        row["run"]: {**{key: row[key] for key in row if key != "run"}, "outstanding_by_version": {}} for row in rows
    }
    version = jobs.c.policy_version
    by_version = select(jobs.c.run, version, func.count()).where(schema.outstanding).group_by(jobs.c.run, version)
    for run, number, count in connection.execute(by_version.order_by(version)):
        runs[run]["outstanding_by_version"][str(number)] = count
    return runs


def _outcomes(connection: Connection) -> dict[str, Any]:
    """Return the accepted outcomes by kind, with their execution time."""
    query = (
        select(
            jobs.c.kind,
            func.count().label("count"),
            func.sum(jobs.c.seconds).label("seconds"),
            func.avg(jobs.c.seconds).label("mean_seconds"),
        )
        .where(schema.in_state(DONE))
        .group_by(jobs.c.kind)
        .order_by(jobs.c.kind)
    )
    rows = connection.execute(query).mappings()
    return {row["kind"]: {key: row[key] for key in ("count", "seconds", "mean_seconds")} for row in rows}


def _leases(connection: Connection, now: ColumnElement[float]) -> list[dict[str, Any]]:
    query = (
        select(
            jobs.c.id.label("job"),
            jobs.c.run,
            jobs.c.worker,
            jobs.c.attempts.label("attempt"),
            (now - jobs.c.leased_at).label("age_seconds"),
            (jobs.c.lease_until - now).label("remaining_seconds"),
        )
        .where(schema.leased)
        .order_by(jobs.c.leased_at)
        .limit(_LISTED)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def _dead_letters(connection: Connection, now: ColumnElement[float]) -> list[dict[str, Any]]:
    query = (
        select(
            jobs.c.id.label("job"),
            jobs.c.run,
            jobs.c.attempts,
            jobs.c.worker,
            jobs.c.reason,
            (now - jobs.c.finished_at).label("age_seconds"),
        )
        .where(schema.in_state(DEAD))
        .order_by(jobs.c.finished_at.desc())
        .limit(_LISTED)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def _workers(connection: Connection, now: ColumnElement[float]) -> list[Row]:
    """Return all known workers, the most recently seen first, with `age` since then in seconds."""
    query = select(workers, (now - workers.c.last_seen).label("age")).order_by(workers.c.last_seen.desc())
    return list(connection.execute(query))


def _worker(row: Row) -> dict[str, Any]:
    shown = ("name", "host", "pid", "version", "slots", "health", "completed", "failed")
    return {
        **{key: getattr(row, key) for key in shown},
        "capabilities": json.loads(row.capabilities),
        "last_seen_seconds": row.age,
    }
