"""What only a server can suffer: restarts, wrong clocks on other hosts, roles, passwords."""

import os
import socket
import subprocess
import threading
import time
import traceback

import pytest
import sqlalchemy
from queue_cases import job, outcome, outstanding
from silent_network import SilentNetwork

from environments.protocol import OutcomeKind, Requirements
from environments.queue import QueueError, RetryPolicy, open_queue, postgres
from environments.queue.__main__ import main
from environments.queue.base import Capabilities, WorkerReport

pytestmark = pytest.mark.postgres
ANY = Capabilities()


@pytest.fixture
def queue(postgres_database):
    queue = open_queue(postgres_database)
    yield queue
    queue.close()


def sql(url, *statements):
    engine = sqlalchemy.create_engine(sqlalchemy.make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0])
def test_a_workers_wrong_clock_has_no_effect(queue, postgres_database, monkeypatch, wrong):
    queue.enqueue([job(0), job(1)])
    mine = queue.claim("right", ANY, lease_seconds=30)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong)
    other = open_queue(postgres_database)
    theirs = other.claim("wrong", ANY, lease_seconds=30)
    assert theirs.job != mine.job
    assert other.claim("wrong", ANY) is None
    assert queue.claim("right", ANY) is None
    assert other.heartbeat([theirs]) == []
    assert queue.complete(mine, outcome())
    assert other.complete(theirs, outcome())
    assert other.status()["executions_per_minute"]["last_minute"] == 2
    other.close()


def run_through(outage, url):
    """Half of the jobs done, the server away for a while, the other half done by those who were connected before."""
    trainer = open_queue(url, retries=RetryPolicy(max_attempts=10, backoff_seconds=0.1))
    jobs = [job(sample) for sample in range(30)]
    trainer.enqueue(jobs)
    halfway, back, errors = threading.Event(), threading.Event(), []

    def work(name):
        queue = open_queue(url)
        try:
            with queue.watch() as added:
                while not back.is_set() or outstanding(trainer):
                    lease = queue.claim(name, ANY, lease_seconds=60)
                    if lease is None:
                        added.wait(0.1)
                        continue
                    if lease.job.sample == 15:
                        halfway.set()
                        back.wait(300)
                    queue.heartbeat([lease])
                    queue.complete(lease, outcome())
        except Exception as error:
            errors.append(error)
        finally:
            queue.close()

    workers = [threading.Thread(target=work, args=(f"w{index}",), daemon=True) for index in range(3)]
    waiting = threading.Thread(target=lambda: found.update(trainer.wait([each.id for each in jobs], 300)))
    found = {}
    for thread in (*workers, waiting):
        thread.start()
    assert halfway.wait(300)
    outage()
    back.set()
    for thread in (*workers, waiting):
        thread.join(300)
    trainer.close()
    assert errors == []
    assert {each.kind for each in found.values()} == {OutcomeKind.SCORED}
    assert len(found) == len(jobs)


def restart(server, seconds):
    server.stop()
    time.sleep(seconds)
    server.start()


def test_a_server_that_restarts_is_waited_for_and_nothing_is_lost(own_postgres):
    run_through(lambda: restart(own_postgres, 0.5), own_postgres.url())


@pytest.fixture
def network(postgres_database):
    """The way to the database, and the URL by this way."""
    url = sqlalchemy.make_url(postgres_database)
    network = SilentNetwork(url.host, url.port or 5432)
    through = url.set(host="127.0.0.1", port=network.port).update_query_dict({"connect_timeout": "3"})
    yield network, through.render_as_string(hide_password=False)
    network.close()


@pytest.mark.slow
def test_a_network_that_is_cut_without_a_word_for_30_seconds_is_noticed_and_nothing_is_lost(network):
    network, url = network
    lost = []

    def cut():
        lost.append(network.cut())
        time.sleep(30)
        network.restore()

    run_through(cut, url)
    assert lost[0] >= 4  # The three workers and the trainer; those connections never spoke again.


def test_a_statement_without_an_answer_is_an_error_that_says_so(network, monkeypatch):
    network, url = network
    queue = open_queue(url, patience_seconds=0)
    monkeypatch.setattr(postgres, "SILENCE_SECONDS", 0.3)
    network.cut()
    with pytest.raises(QueueError, match=r"no answer for 0\.3 s"):
        outstanding(queue)
    network.restore()
    monkeypatch.undo()
    assert outstanding(queue) == {}
    queue.close()


def test_the_kernel_gives_up_a_connection_that_is_not_acknowledged(postgres_database):
    url = sqlalchemy.make_url(postgres_database).update_query_dict({"tcp_user_timeout": "7000"})
    for given, milliseconds in ((postgres_database, 30_000), (url.render_as_string(hide_password=False), 7000)):
        queue = open_queue(given)
        with queue._engine.begin(write=True) as connection:
            assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "1min"
            with socket.socket(fileno=os.dup(connection.connection.driver_connection.fileno())) as wire:
                assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == milliseconds
        queue.close()


def test_a_workers_role_can_claim_and_complete_but_not_drop_or_add(queue, postgres_url, postgres_database, capsys):
    schema = sqlalchemy.make_url(postgres_database).query["options"].split("=")[1]
    role = f"worker_{schema}"
    sql(postgres_url, f"CREATE ROLE {role} LOGIN PASSWORD 'w0rk'", f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    try:
        assert main(["grant", postgres_database, role]) == 0
        url = sqlalchemy.make_url(postgres_database).set(username=role, password="w0rk")
        worker = open_queue(url.render_as_string(hide_password=False))
        queue.enqueue([job(0), job(1)])
        worker.report("w", WorkerReport("host", 1, "1.0", 1, ANY))
        lease = worker.claim("w", ANY)
        assert worker.heartbeat([lease]) == []
        assert worker.complete(lease, outcome())
        worker.fail(worker.claim("w", ANY), "broken")
        with pytest.raises(QueueError, match="permission denied"):
            worker.enqueue([job(2)])
        with pytest.raises(QueueError, match="permission denied"):
            worker.purge(0)
        with pytest.raises(QueueError, match="permission denied"):
            worker.rollback("run", -1)
        with pytest.raises(sqlalchemy.exc.ProgrammingError, match="permission denied"):
            sql(url.render_as_string(hide_password=False), "UPDATE mlagent_jobs SET payload = 'another action'")
        with pytest.raises(sqlalchemy.exc.ProgrammingError, match="must be owner"):
            sql(url.render_as_string(hide_password=False), "DROP TABLE mlagent_jobs")
        worker.close()
    finally:
        sql(postgres_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_credentials_are_in_no_error_and_no_status(postgres_url, postgres_database, capsys):
    secret = "p%40ss/w:rd"
    wrong = sqlalchemy.make_url(postgres_database).set(username="nobody_at_all", password=secret)
    with pytest.raises(QueueError, match=r"nobody_at_all.* check user") as caught:
        open_queue(wrong.render_as_string(hide_password=False))
    assert secret not in "".join(traceback.format_exception(caught.value))
    right = sqlalchemy.make_url(postgres_database).set(password=secret).render_as_string(hide_password=False)
    assert main(["status", right, "--json"]) == 1  # No queue there yet.
    open_queue(right).close()
    assert main(["status", right, "--json"]) == 0
    shown = "".join(capsys.readouterr())
    assert "***" in shown
    assert secret not in shown
    with pytest.raises(QueueError) as caught:
        open_queue(f"postgresql://user:{secret}@host:notaport/db")
    assert "w:rd" not in str(caught.value)


@pytest.mark.slow
def test_tls_and_a_password_from_the_url_or_the_environment(own_postgres, tmp_path, monkeypatch):
    certificates = []
    for name in ("right", "wrong"):
        certificates.append(tmp_path / f"{name}.crt")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-keyout", tmp_path / f"{name}.key", "-out", certificates[-1], "-subj", "/CN=queue"]
        subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    sql(own_postgres.url(), "ALTER ROLE postgres PASSWORD 's3cret'")
    own_postgres.stop()
    own_postgres.demand_tls(certificates[0], tmp_path / "right.key")
    own_postgres.start()
    bare = sqlalchemy.make_url(own_postgres.url())

    def opened(url, **variables):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, str(value))
            queue = open_queue(url.render_as_string(hide_password=False))
        with queue._engine.begin(write=True) as connection:
            assert connection.exec_driver_sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").scalar()
        queue.close()

    tls = {"sslmode": "verify-full", "sslrootcert": str(certificates[0])}
    opened(bare.set(password="s3cret").update_query_dict(tls))
    opened(bare, PGPASSWORD="s3cret", PGSSLMODE="verify-full", PGSSLROOTCERT=certificates[0])
    started = time.monotonic()
    with pytest.raises(QueueError, match="certificate verify failed"):
        opened(bare.set(password="s3cret").update_query_dict({**tls, "sslrootcert": str(certificates[1])}))
    with pytest.raises(QueueError, match="password authentication failed") as caught:
        opened(bare.set(password="s3crets").update_query_dict(tls))
    assert "s3cret" not in str(caught.value)
    assert time.monotonic() - started < 60  # Not waited for, as a server that is away would be.


def test_a_server_that_does_not_answer_is_an_error_after_a_while():
    with pytest.raises(QueueError, match=r"127\.0\.0\.1:1"):
        open_queue("postgresql://user@127.0.0.1:1/db", patience_seconds=0.2)


def test_another_schema_version_is_refused(queue, postgres_database):
    sql(postgres_database, "UPDATE mlagent_schema SET version = 99")
    with pytest.raises(QueueError, match="version 99, this program speaks"):
        open_queue(postgres_database)


def test_many_may_create_the_queue_at_once(postgres_database):
    errors = []

    def create():
        try:
            open_queue(postgres_database).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_claims_of_many_at_once_never_give_the_same_job(queue, postgres_database):
    queue.enqueue([job(sample, requirements=Requirements(cores=1 + sample % 3)) for sample in range(60)])
    taken, lock = [], threading.Lock()

    def take():
        other = open_queue(postgres_database)
        while lease := other.claim("w", Capabilities(cores=4)):
            with lock:
                taken.append(lease.job.sample)
        other.close()

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(60))
