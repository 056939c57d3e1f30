"""Tables of the reward queue, the same on SQLite and PostgreSQL, and the check of their version.

One row of `jobs` follows a job from enqueueing to the training step that used its result. Conditions on the state
write it as a literal, which lets the planner use the partial indexes.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    literal_column,
    select,
)

from environments.queue.base import QueueError

SCHEMA_VERSION = 2

QUEUED, LEASED, DONE, DEAD, CANCELLED = "queued", "leased", "done", "dead", "cancelled"

metadata = MetaData()

schema = Table("mlagent_schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

clock = Table(
    "mlagent_clock",
    metadata,
    Column("boot", String(64), primary_key=True),  # Which start of the host the offset belongs to.
    Column("offset", Double, nullable=False),  # Queue time less the seconds since that start.
)
"""Clock of a SQLite queue, one row; a server has a clock of its own."""

requirements = Table(
    "mlagent_requirements",
    metadata,
    Column("id", String(64), primary_key=True),  # Digest of `body`.
    Column("body", Text, nullable=False),  # Requirements as JSON.
)
"""The few distinct requirements that jobs have: matched against a worker's capabilities in Python, not in SQL."""

jobs = Table(
    "mlagent_jobs",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("run", Text, nullable=False),
    Column("policy_version", Integer, nullable=False),
    Column("requirements", String(64), nullable=False),
    Column("payload", Text, nullable=False),  # The job, see `payloads`.
    Column("execution_seconds", Double, nullable=False),  # Longest time from a claim to its result.
    Column("state", String(16), nullable=False),
    Column("enqueued_at", Double, nullable=False),
    Column("ready_at", Double, nullable=False),  # Not claimed before: backoff.
    Column("attempts", Integer, nullable=False, default=0),
    Column("max_attempts", Integer, nullable=False),
    Column("lapses", Integer, nullable=False, default=0),  # Attempts that ended because the lease ran out.
    Column("token", Integer, nullable=False, default=0),  # Fence: grows with every claim, never reset.
    Column("worker", Text),  # Of the newest claim.
    Column("leased_at", Double),
    Column("lease_until", Double),
    Column("deadline", Double),  # No heartbeat renews a lease beyond it.
    Column("late_results", Integer, nullable=False, default=0),  # Handed in without a lease, and discarded.
    Column("finished_at", Double),
    Column("kind", String(32)),  # OutcomeKind of the accepted outcome.
    Column("seconds", Double),  # Execution time of the accepted outcome.
    Column("outcome", Text),  # The accepted outcome, see `payloads`.
    Column("reason", Text),  # Of the last failure, or why it is dead or cancelled.
    Column("consumed_step", Integer),  # Training step that used the result.
)

workers = Table(
    "mlagent_workers",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("capabilities", Text, nullable=False),  # JSON.
    Column("health", Text, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
)


def in_state(*states: str) -> ColumnElement[bool]:
    """Condition on the state of a job, with the states as SQL literals."""
    if len(states) == 1:
        return jobs.c.state == literal_column(f"'{states[0]}'")
    return jobs.c.state.in_([literal_column(f"'{state}'") for state in states])


queued, leased, done = in_state(QUEUED), in_state(LEASED), in_state(DONE)
outstanding, finished = in_state(QUEUED, LEASED), in_state(DONE, DEAD, CANCELLED)
consumed = jobs.c.consumed_step.is_not(None)


def _partial_index(name: str, where: ColumnElement[bool], *columns: Column) -> Index:
    return Index(name, *columns, sqlite_where=where, postgresql_where=where)


_partial_index("mlagent_jobs_queued", queued, jobs.c.ready_at, jobs.c.seq)
_partial_index("mlagent_jobs_leased", leased, jobs.c.lease_until)
_partial_index("mlagent_jobs_outstanding", outstanding, jobs.c.run, jobs.c.policy_version)
_partial_index("mlagent_jobs_finished", finished, jobs.c.run, jobs.c.finished_at)
_partial_index("mlagent_jobs_consumed", consumed, jobs.c.run, jobs.c.consumed_step)


def exists(connection: Connection) -> bool:
    """Whether a queue is there, of whatever version."""
    return inspect(connection).has_table(schema.name)


def create(connection: Connection) -> None:
    """Make the tables, unless another did meanwhile. Call it in a transaction that excludes others."""
    if not exists(connection):
        metadata.create_all(connection)
        connection.execute(schema.insert().values(version=SCHEMA_VERSION))


def check(connection: Connection, where: str) -> None:
    """Raise QueueError where the queue is of another version. `where` names the database for people."""
    version = connection.scalar(select(schema.c.version))
    if version != SCHEMA_VERSION:
        raise QueueError(
            f"the queue at {where} has schema version {version}, this program speaks {SCHEMA_VERSION}: finish its runs "
            "with the program that made it, or name a new database"
        )
