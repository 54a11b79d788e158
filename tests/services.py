"""The two servers that tests share, real ones from wheels, and databases that are cheap to have.

One PostgreSQL a test session; its template is migrated once. Most tests use one copy, emptied before each;
a test that changes the schema or starts processes takes a copy of its own. Durability is off: nothing must
outlive a power cut.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from cli.embedded import Server, start_postgres, start_valkey
from migrations.run import upgrade

TEMPLATE = "template_mergery"
FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}
_numbers = itertools.count(1)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A short-named folder that other users may pass through, as a server that is not root needs."""
    folder = Path(tempfile.mkdtemp(prefix="mergery-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def postgres_server(folder: Path) -> Iterator[Server]:
    """A running PostgreSQL with the migrated template."""
    server = start_postgres(folder, FAST)
    try:
        with _admin(server) as connection:
            connection.execute(f"CREATE DATABASE {TEMPLATE}")
        upgrade(database_url(server, TEMPLATE))
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def valkey_server(folder: Path) -> Iterator[Server]:
    """A running Valkey."""
    server = start_valkey(folder)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def fresh_database(server: Server, *, tables: bool = True) -> Iterator[str]:
    """URL of a new database with all tables and no rows, or without tables; dropped afterwards."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    template = TEMPLATE if tables else "template0"
    with _admin(server) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
    try:
        yield database_url(server, name)
    finally:
        with _admin(server) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def empty(url: str) -> None:
    """Ends all other connections of a database and removes every row: all of them hang on a tenant."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        connection.execute("DELETE FROM tenant")


def database_url(server: Server, name: str) -> str:
    """URL of another database of the same server."""
    return server.url.replace("/mergery?", f"/{name}?")


def _admin(server: Server) -> psycopg.Connection[tuple[object, ...]]:
    plain = database_url(server, "postgres").replace("+psycopg", "")
    return psycopg.connect(plain, autocommit=True)
