"""The two servers that tests share, real ones from wheels; and a fresh database for each test, copied from
a template.

One PostgreSQL a test session. The template is migrated once; a copy is a matter of some milliseconds
because the server copies files. Durability is switched off: a test database need not outlive a power cut.
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
    "file_copy_method": "clone",
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
def fresh_database(server: Server, *, empty: bool = False) -> Iterator[str]:
    """URL of a new database with all tables and no rows, or with nothing at all; dropped afterwards."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    template = "template0" if empty else TEMPLATE
    with _admin(server) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
    try:
        yield database_url(server, name)
    finally:
        with _admin(server) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def database_url(server: Server, name: str) -> str:
    """URL of another database of the same server."""
    return server.url.replace("/mergery?", f"/{name}?")


def _admin(server: Server) -> psycopg.Connection[tuple[object, ...]]:
    plain = database_url(server, "postgres").replace("+psycopg", "")
    return psycopg.connect(plain, autocommit=True)
