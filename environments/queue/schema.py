"""Tables of the reward queue, the same on SQLite and PostgreSQL, and the check of their version.

One row of `jobs` follows a job from enqueueing to the training step that used its result. A claim is to cost the same
with ten jobs queued and with a hundred thousand, whatever the planner's statistics say: they are of a moment when the
queue may have been empty. Who seeks jobs by their state writes it as a literal (`queued`, `leased`, ...), which lets
the planner use the partial index; who has a job's id and checks its state (`is_leased`, ...) hides it from them.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
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
    event,
    inspect,
    literal_column,
    select,
)

from environments.queue.base import QueueError

SCHEMA_VERSION = 1

QUEUED, LEASED, DONE, DEAD, CANCELLED = "queued", "leased", "done", "dead", "cancelled"

metadata = MetaData()

schema = Table("mlagent_schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

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


# Every claim and every result leave a dead row, thousands of them while the default waits for a fifth of the table.
event.listen(
    jobs,
    "after_create",
    DDL(
        "ALTER TABLE %(fullname)s SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000)"
    ).execute_if(dialect="postgresql"),
)


def in_state(*states: str, of: ColumnElement[str] = jobs.c.state) -> ColumnElement[bool]:
    """Condition on the state `of` a job with the states as SQL literals."""
    if len(states) == 1:
        return of == literal_column(f"'{states[0]}'")
    return of.in_([literal_column(f"'{state}'") for state in states])


queued, leased = in_state(QUEUED), in_state(LEASED)
outstanding, finished = in_state(QUEUED, LEASED), in_state(DONE, DEAD, CANCELLED)
consumed = jobs.c.consumed_step.is_not(None)

_hidden_state = jobs.c.state.concat(literal_column("''"))
is_leased, is_done = in_state(LEASED, of=_hidden_state), in_state(DONE, of=_hidden_state)
is_finished = in_state(DONE, DEAD, CANCELLED, of=_hidden_state)


def _partial_index(name: str, where: ColumnElement[bool], *columns: Column) -> Index:
    return Index(name, *columns, sqlite_where=where, postgresql_where=where)


_partial_index("mlagent_jobs_queued", queued, jobs.c.requirements, jobs.c.ready_at, jobs.c.seq)
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
