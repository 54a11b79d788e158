"""Fixtures for every room: real PostgreSQL and Valkey, a database and a session of each test's own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from cli.embedded import Server
from db.session import make_engine, make_sessions
from jobs.keyring import Keyring
from tests import services
from tests.factories import TEST_SECRET


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Nothing of a test must outlive a power cut: what is written is not flushed, only its file looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_tracebacks() -> None:
    """structlog shows every local variable of an error by default, which takes seconds for a worker's."""
    *before, _ = structlog.get_config()["processors"]
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*before, plain])


@pytest.fixture(scope="session")
def services_folder() -> Iterator[Path]:
    """Where the servers of this test session keep their data."""
    with services.scratch_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres(services_folder: Path) -> Iterator[Server]:
    """The PostgreSQL of this test session."""
    with services.postgres_server(services_folder) as server:
        yield server


@pytest.fixture(scope="session")
def valkey(services_folder: Path) -> Iterator[Server]:
    """The Valkey of this test session."""
    with services.valkey_server(services_folder) as server:
        yield server


@pytest.fixture(scope="session")
def _shared_database(postgres: Server) -> Iterator[str]:
    with services.fresh_database(postgres) as url:
        yield url


@pytest.fixture
def postgres_url(_shared_database: str) -> str:
    """A migrated database without a row; tests use it one after the other."""
    services.empty(_shared_database)
    return _shared_database


@pytest.fixture
def own_postgres_url(postgres: Server) -> Iterator[str]:
    """A migrated database of this test's own, for tests that change the schema or start processes."""
    with services.fresh_database(postgres) as url:
        yield url


@pytest.fixture
def empty_postgres_url(postgres: Server) -> Iterator[str]:
    """A database of this test's own without a single table."""
    with services.fresh_database(postgres, tables=False) as url:
        yield url


@pytest.fixture
def valkey_url(valkey: Server) -> Iterator[str]:
    """The broker, emptied before the test."""
    import redis

    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    yield valkey.url


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """An engine on this test's database."""
    made = make_engine(postgres_url)
    yield made
    made.dispose()


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    """A session factory on this test's database."""
    return make_sessions(engine)


@pytest.fixture
def session(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """One session; rolled back at the end unless the test commits."""
    with sessions() as made:
        yield made


@pytest.fixture
def keyring() -> Keyring:
    """Seals secrets in tests."""
    return Keyring(TEST_SECRET)
