"""What only a SQLite file can suffer: locks, full disks, network file systems."""

import collections
import contextlib
import sqlite3
import threading
import time

import pytest
from queue_cases import fill, job, outcome, outstanding

from environments.files import file_systems
from environments.queue import QueueError, open_queue, sql, sqlite
from environments.queue.base import Capabilities

Mount = collections.namedtuple("Mount", "mountpoint fstype")


@pytest.fixture
def queue(sqlite_database):
    queue = open_queue(sqlite_database, patience_seconds=30)
    yield queue
    queue.close()


def locked(tmp_path):
    connection = sqlite3.connect(tmp_path / "queue.db", isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def test_a_locked_file_is_waited_for(queue, tmp_path):
    holder = locked(tmp_path)
    threading.Timer(0.3, holder.execute, ("COMMIT",)).start()
    assert queue.enqueue([job()]) == 1
    assert queue.claim("w", Capabilities())


def test_a_file_that_stays_locked_is_an_error_that_names_it_and_reading_goes_on(queue, sqlite_database, tmp_path):
    queue.enqueue([job()])
    impatient = open_queue(sqlite_database, patience_seconds=0.2)
    holder = locked(tmp_path)
    with pytest.raises(QueueError, match=r"locked for 0 s: find the process .*queue\.db"):
        impatient.enqueue([job(1)])
    assert outstanding(impatient) == {0: 1}
    holder.execute("COMMIT")
    assert impatient.enqueue([job(1)]) == 1
    impatient.close()


def test_a_full_disk_is_an_error_and_loses_nothing(small_disk):
    assert file_systems.file_system_of(small_disk) == "tmpfs"
    with contextlib.closing(open_queue(f"sqlite:///{small_disk}/queue.db", patience_seconds=0)) as queue:
        queue.enqueue([job(0)])
        lease = queue.claim("w", Capabilities())
        filler = fill(small_disk)
        with pytest.raises(QueueError, match="full: free space on the disk"):
            queue.enqueue([job(i, action="x" * 3000) for i in range(1, 100)])
        assert outstanding(queue) == {0: 1}
        filler.unlink()
        assert queue.complete(lease, outcome())


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "fuse.gcsfuse", "9p"])
def test_a_network_file_system_is_refused(tmp_path, monkeypatch, kind):
    mounts = [Mount("/", "ext4"), Mount(str(tmp_path), kind), Mount(str(tmp_path / "local"), "xfs")]
    monkeypatch.setattr(file_systems.psutil, "disk_partitions", lambda all: mounts)
    with pytest.raises(QueueError, match=f"network file system \\({kind}\\).*postgresql://"):
        open_queue(f"sqlite:///{tmp_path}/inner/queue.db")
    open_queue(f"sqlite:///{tmp_path}/local/queue.db").close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db", "not a url", ""])
def test_a_url_that_does_not_serve_is_refused_with_one_that_does(url):
    with pytest.raises(QueueError, match="write sqlite:///"):
        open_queue(url)


def test_a_folder_without_access_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QueueError, match="cannot be created"):
        open_queue(f"sqlite:///{tmp_path}/file/queue.db")


def test_another_schema_version_is_refused(queue, sqlite_database, tmp_path):
    connection = sqlite3.connect(tmp_path / "queue.db")
    connection.execute("UPDATE mlagent_schema SET version = 99")
    connection.commit()
    with pytest.raises(QueueError, match="version 99, this program speaks"):
        open_queue(sqlite_database)


def test_a_claim_looks_only_at_the_job_it_takes(queue, tmp_path):
    """The plan of the claim is two index searches, so that it costs the same at any depth."""
    queue.enqueue([job()])
    statements = []
    engine = queue._engine._engine
    sqlite.event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2:4]))
    queue.claim("w", Capabilities())
    connection = sqlite3.connect(tmp_path / "queue.db")
    plans = [
        row[3]
        for statement, parameters in statements
        if "UPDATE" in statement
        for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
    ]
    assert any(
        "USING INDEX mlagent_jobs_queued" in plan or "COVERING INDEX mlagent_jobs_queued" in plan for plan in plans
    )
    assert not any(plan.startswith("SCAN") or "TEMP B-TREE" in plan for plan in plans), plans


def test_wait_is_woken_by_another_connections_result(queue, sqlite_database, monkeypatch):
    worker = open_queue(sqlite_database)
    queue.enqueue([job()])
    lease = worker.claim("w", Capabilities())
    monkeypatch.setattr(sql, "LOOK_SECONDS", (0.01, 600.0))  # The fallback where nothing wakes it.
    threading.Timer(0.1, worker.complete, (lease, outcome())).start()
    assert queue.wait([job().id], 300)
    worker.close()


def test_watch_wakes_when_jobs_are_added(queue, sqlite_database):
    worker = open_queue(sqlite_database)
    with worker.watch() as added:
        assert not added.wait(0.02)
        threading.Timer(0.1, queue.enqueue, ([job()],)).start()
        assert added.wait(300)
    worker.close()


@pytest.mark.parametrize("minutes", [-600, 600])
def test_a_host_clock_that_is_set_stops_no_claim_and_ends_no_lease(queue, sqlite_database, monkeypatch, minutes):
    queue.enqueue([job(0), job(1)])
    before = queue.claim("before", Capabilities(), lease_seconds=30)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 60 * minutes)
    with contextlib.closing(open_queue(sqlite_database)) as other:
        after = other.claim("after", Capabilities(), lease_seconds=30)
        assert after.job == job(1), "what was queued before is claimed, what is leased is not"
        assert queue.heartbeat([before]) == []
        assert queue.complete(before, outcome())
        assert other.complete(after, outcome())


def test_a_host_that_starts_again_with_a_clock_behind_goes_on_from_what_is_recorded(
    queue, sqlite_database, monkeypatch
):
    queue.enqueue([job(0)])
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    monkeypatch.setattr(sqlite, "_boot", lambda: "another start")
    monkeypatch.setattr(sqlite, "_seconds_since_boot", lambda: 5.0)
    with contextlib.closing(open_queue(sqlite_database)) as started:
        assert started.claim("w", Capabilities()).job == job(0)
