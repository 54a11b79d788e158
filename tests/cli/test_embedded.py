"""The embedded servers: taken over, repaired after a kill -9, kept apart from other users."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from cli import unprivileged
from cli.embedded import EmbeddedServerError, Server, start_postgres, start_valkey
from cli.unprivileged import Account, reachable_home, reachable_programs
from cli.up import Guard
from tests.services import FAST

as_root = os.geteuid() == 0


@contextmanager
def stopped_after(*servers: Server) -> Iterator[None]:
    try:
        yield
    finally:
        for server in servers:
            server.stop()


def run_sql(server: Server, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_postgres_survives_kill_9_with_its_data_and_the_next_start_takes_over(folder: Path) -> None:
    server = start_postgres(folder)
    with stopped_after(server):
        run_sql(server, "CREATE TABLE kept (n int)")
        run_sql(server, "INSERT INTO kept VALUES (7)")
        first = server.pid
        assert first is not None and start_postgres(folder).pid == first
        os.kill(first, signal.SIGKILL)
        again = start_postgres(folder)
        assert again.url == server.url and again.pid not in (None, first)
        assert run_sql(again, "SELECT n FROM kept") == [(7,)]
    assert server.pid is None and not server.is_alive()


def test_a_pid_file_that_names_another_process_does_not_keep_postgres_down(folder: Path) -> None:
    server = start_postgres(folder, FAST)
    with stopped_after(server):
        server.stop()
        pid_file = server.folder / "postmaster.pid"
        pid_file.write_text(f"{os.getpid()}\n{server.folder}\n0\n5432\n")
        if as_root:
            os.chown(pid_file, server.folder.stat().st_uid, server.folder.stat().st_gid)
        assert start_postgres(folder, FAST).is_alive()


def test_two_starters_end_up_with_one_server(folder: Path) -> None:
    found: list[int | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(start_postgres(folder, FAST).pid)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with stopped_after(start_postgres(folder, FAST)):
        assert len(found) == 3 and len(set(found)) == 1


def test_postgres_is_closed_to_other_users(folder: Path) -> None:
    server = start_postgres(folder, FAST)
    with stopped_after(server):
        assert stat.S_IMODE((folder / "postgres").stat().st_mode) == 0o700
        assert run_sql(server, "SHOW listen_addresses") == [("",)]
        assert server.pid is not None
        if as_root:
            assert Path(f"/proc/{server.pid}").stat().st_uid != 0


def test_a_path_too_long_for_a_socket_gets_a_short_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    deep = folder / ("x" * 60) / ("y" * 60)
    server = start_postgres(deep, FAST)
    with stopped_after(server):
        assert "xxx" not in server.url and run_sql(server, "SELECT 1") == [(1,)]
        assert start_postgres(deep, FAST).pid == server.pid


def test_data_of_another_version_is_left_alone_and_named(folder: Path) -> None:
    server = start_postgres(folder, FAST)
    server.stop()
    (server.folder / "PG_VERSION").write_text("11\n")
    with pytest.raises(EmbeddedServerError, match="written by PostgreSQL 11, this is 18"):
        start_postgres(folder, FAST)


def test_valkey_survives_kill_9_with_its_data_and_keeps_its_url(folder: Path) -> None:
    server = start_valkey(folder)
    with stopped_after(server), redis.Redis.from_url(server.url) as client:
        client.set("kept", "7")
        settings = client.config_get("*")
        assert (settings["appendonly"], settings["maxmemory-policy"]) == ("yes", "noeviction")
        first = server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        again = start_valkey(folder)
        assert again.url == server.url and again.pid != first
        assert client.get("kept") == b"7"


def test_valkey_asks_for_its_password_and_hides_it(folder: Path) -> None:
    server = start_valkey(folder)
    with stopped_after(server):
        bare = server.url.replace(server.url[len("redis://") : server.url.index("@") + 1], "")
        with redis.Redis.from_url(bare) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        for name in ("password", "valkey.conf"):
            assert stat.S_IMODE((folder / "valkey" / name).stat().st_mode) == 0o600
        assert server.pid is not None
        assert (
            ":" + server.url.split(":")[2].split("@")[0]
            not in Path(f"/proc/{server.pid}/cmdline").read_text()
        )


def test_a_port_that_somebody_took_is_changed_and_the_guard_says_so(folder: Path) -> None:
    server = start_valkey(folder)
    guard = Guard(folder, [server], [start_valkey])
    assert guard.look() == {}
    server.stop()
    port = int((folder / "valkey" / "port").read_text())
    with socket.create_server(("127.0.0.1", port)):
        moved = guard.look()
    again = start_valkey(folder)
    with stopped_after(again):
        assert again.url != server.url and again.is_alive()
        assert moved == {"BROKER_URL": again.url}
        assert guard.look() == {}


def test_servers_outlive_the_process_that_started_them(folder: Path) -> None:
    code = "import sys; from pathlib import Path; from cli.embedded import *; "
    code += "f = Path(sys.argv[1]); start_valkey(f); print(start_postgres(f).pid)"
    said = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    postgres, valkey = start_postgres(folder), start_valkey(folder)
    with stopped_after(postgres, valkey):
        assert postgres.pid == int(said.stdout)


def test_a_closed_home_stays_closed_and_the_data_goes_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = folder / "home"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(unprivileged, "OPEN_FOLDER", folder / "var")
    stranger = Account(os.geteuid() + 12345, os.getegid() + 12345)
    first = reachable_home(stranger, closed / "data" / "postgres")
    assert first.parent == folder / "var" and first.name.startswith("postgres-")
    assert reachable_home(stranger, closed / "other" / "postgres") != first
    assert reachable_home(stranger, folder / "postgres") == folder / "postgres"
    assert reachable_home(None, closed / "postgres") == closed / "postgres"
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_programs_in_a_closed_environment_are_copied_once_with_their_libraries(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = folder / "venv"
    (packages / "pg" / "bin").mkdir(parents=True)
    (packages / "pg.libs").mkdir()
    (packages / "pg" / "bin" / "postgres").write_text("program")
    (packages / "pg.libs" / "libpq.so").write_text("library")
    packages.chmod(0o700)
    monkeypatch.setattr(unprivileged, "OPEN_FOLDER", folder / "var")
    stranger = Account(os.geteuid() + 12345, os.getegid() + 12345)
    program = packages / "pg" / "bin" / "postgres"
    for _ in range(2):
        copied = reachable_programs(stranger, [packages / "pg", packages / "pg.libs"], program, "18.6")
        assert copied == folder / "var" / "programs-18.6" / "pg" / "bin" / "postgres"
    assert (copied.parents[2] / "pg.libs" / "libpq.so").read_text() == "library"


def test_without_the_package_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EmbeddedServerError, match="set DATABASE_URL"):
        start_postgres(folder)
