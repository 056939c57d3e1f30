"""Both engines for real, and queues on them that are closed at the end."""

import os
import uuid

import pytest
import sqlalchemy
from postgres_server import PostgresServer, need_binaries
from queue_cases import Clock

from environments.queue import open_queue


@pytest.fixture(scope="session")
def postgres_url():
    """URL of a database in which schemas can be made: the one in MLAGENT_TEST_POSTGRES, or a temporary one."""
    given = os.environ.get("MLAGENT_TEST_POSTGRES")
    if given:
        yield given
        return
    server = PostgresServer(need_binaries())
    yield server.url()
    server.remove()


@pytest.fixture
def own_postgres():
    """A server of the test's own, to stop and to start."""
    server = PostgresServer(need_binaries())
    yield server
    server.remove()


@pytest.fixture
def postgres_database(postgres_url):
    """URL of an empty schema: as good as a database, and made in a tenth of the time."""
    name = f"test_{uuid.uuid4().hex}"
    base = sqlalchemy.make_url(postgres_url)
    admin = sqlalchemy.create_engine(base.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    yield base.update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
    admin.dispose()


@pytest.fixture
def sqlite_database(tmp_path):
    return f"sqlite:///{tmp_path}/queue.db"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request):
    """An empty database, on each engine."""
    return request.getfixturevalue(f"{request.param}_database")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def connect(url):
    """Opens queues on the database; all are closed at the end."""
    opened = []

    def connect(**options):
        opened.append(open_queue(url, **options))
        return opened[-1]

    yield connect
    for queue in opened:
        queue.close()
