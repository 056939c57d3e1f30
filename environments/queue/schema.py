"""Tables of the reward queue, the same on SQLite and PostgreSQL, and the check of their version.

One row of `jobs` follows a job from enqueueing to the training step that used its result. Conditions on the state are
SQL literals, so that the planner can use the partial indexes.
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
    Column("boot", String(64), primary_key=True),  # Id of the host's start that the offset belongs to.
    Column("offset", Double, nullable=False),  # Queue time minus the seconds since that start.
)
"""Clock of a SQLite queue, one row; a server has its own clock."""

requirements = Table(
    "mlagent_requirements",
    metadata,
    Column("id", String(64), primary_key=True),  # Digest of `body`.
    Column("body", Text, nullable=False),  # Requirements as JSON.
)
"""The few distinct requirements of jobs: matched against a worker's capabilities in Python, not in SQL."""

jobs = Table(
    "mlagent_jobs",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("run", Text, nullable=False),
    Column("policy_version", Integer, nullable=False),
    Column("requirements", String(64), nullable=False),
    Column("payload", Text, nullable=False),  # The job, see `payloads`.
    Column("execution_seconds", Double, nullable=False),  # Maximum time from a claim to its result.
    Column("state", String(16), nullable=False),
    Column("enqueued_at", Double, nullable=False),
    Column("ready_at", Double, nullable=False),  # Earliest time of the next claim: backoff.
    Column("attempts", Integer, nullable=False, default=0),
    Column("max_attempts", Integer, nullable=False),
    Column("max_lapses", Integer, nullable=False),
    Column("lapses", Integer, nullable=False, default=0),  # Attempts that ended because the lease ran out.
    Column("token", Integer, nullable=False, default=0),  # Fence: grows with every claim, never reset.
    Column("worker", Text),  # Holder of the newest claim.
    Column("leased_at", Double),
    Column("lease_until", Double),
    Column("deadline", Double),  # No heartbeat renews a lease beyond it.
    Column("late_results", Integer, nullable=False, default=0),  # Submitted without a lease, and discarded.
    Column("finished_at", Double),
    Column("kind", String(32)),  # OutcomeKind of the accepted outcome.
    Column("seconds", Double),  # Execution time of the accepted outcome.
    Column("outcome", Text),  # The accepted outcome, see `payloads`.
    Column("reason", Text),  # Reason of the last failure, or why it is dead or cancelled.
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
    """Return a condition on the state of a job, with the states as SQL literals."""
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
    """Check whether a queue of any version exists."""
    return inspect(connection).has_table(schema.name)


def create(connection: Connection) -> None:
    """Create the tables, unless another process has. Call it in a transaction that excludes others."""
    if not exists(connection):
        metadata.create_all(connection)
        connection.execute(schema.insert().values(version=SCHEMA_VERSION))


def check(connection: Connection, where: str) -> None:
    """Check the version of the queue. `where` names the database for people.

    Raises:
      QueueError: it has another version.
    """
    version = connection.scalar(select(schema.c.version))
    if version != SCHEMA_VERSION:
        raise QueueError(
            f"the queue at {where} has schema version {version}, this program speaks {SCHEMA_VERSION}: finish its runs "
            "with the program that made it, or name a new database"
        )
