"""`mergery up`: the whole service on one machine. Embedded servers stand in for URLs that are not set."""

import argparse
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy.orm import Session

from cli.embedded import EmbeddedServerError, Server, start_postgres, start_valkey
from cli.errors import AlreadyRunning, NotRunning
from cli.supervisor import Part, Supervisor, mergery
from db import tokens
from db.session import make_engine, make_sessions
from jobs import keys
from migrations.run import upgrade
from settings import Settings

URL_FILE = "database.url"
URL_VARIABLES = {"postgres": "DATABASE_URL", "valkey": "BROKER_URL"}
"""By the name of the embedded server that stands in."""
GPU_MEASURING_SECONDS = "60"
"""From how long on a CPU models are run on texts by a GPU worker, where one is started."""

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks the whole to end: Ctrl-C, `kill`, a terminal that is closed."""

Starter = Callable[[Path], Server]


def up(settings: Settings, options: argparse.Namespace) -> int:
    """Starts everything, prints the first admin key once, and stays until it is told to stop."""
    data_dir = options.data_dir.absolute() if options.data_dir else None
    given = {"data_dir": data_dir, "host": options.host, "port": options.port}
    settings = settings.model_copy(update={k: v for k, v in given.items() if v is not None})
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with _only_one(settings.data_dir), _ended_by(signal.default_int_handler):
        return _run(settings, options)


def _run(settings: Settings, options: argparse.Namespace) -> int:
    starters = _starters(settings)
    with ExitStack() as ends:
        servers = [_started(start, settings.data_dir, ends) for start in starters]
        urls = {server.name: server.url for server in servers}
        database = settings.database_url or urls["postgres"]
        ends.callback(_remember_database(settings.data_dir, database).unlink, missing_ok=True)
        upgrade(database)
        _print_first_key(database)
        environment = _environment(settings, database, settings.broker_url or urls["valkey"])
        if options.gpus:
            environment.setdefault("MERGERY_GPU_MEASURING_SECONDS", GPU_MEASURING_SECONDS)
        _say(f"Mergery is starting at {settings.url} (data in {settings.data_dir}); stop it with Ctrl-C")
        guard = Guard(settings.data_dir, servers, starters)
        Supervisor(_parts(options), environment, guard=guard.look, say=_say).run()
    return 0


def _started(start: Starter, data_dir: Path, ends: ExitStack) -> Server:
    """An embedded server, which ends when all this does, however far it came. Who asks for that while it is
    being started is heard afterwards: half started, nothing would stop it.
    """
    heard: list[int] = []
    with _ended_by(lambda number, _frame: heard.append(number)):
        server = start(data_dir)
        ends.callback(server.stop)
    if heard:
        raise KeyboardInterrupt
    return server


@contextmanager
def _ended_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Every signal that asks to end goes to ``handler``, but those that this process was told to ignore."""
    before = {each: signal.getsignal(each) for each in ENDINGS}
    for each, was in before.items():
        if was != signal.SIG_IGN:
            signal.signal(each, handler)
    try:
        yield
    finally:
        for each, was in before.items():
            signal.signal(each, was)


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Two services on one folder would stop each other's servers. Raises ``AlreadyRunning``."""
    with (data_dir / "up.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"`mergery up` already runs on {data_dir}; stop it first, or choose another --data-dir"
            ) from None
        yield


def create_key(database_url: str, tenant: str, name: str, scopes: list[str]) -> str:
    """Makes an API key for ``tenant`` (made too if it is new) and returns its secret."""
    keys.check_name(tenant, "/tenant")
    with _session(database_url) as session:
        _row, secret = keys.create_key(session, tokens.tenant_named(session, tenant).id, name, scopes)
        session.commit()
    return secret


@contextmanager
def _session(database_url: str) -> Iterator[Session]:
    engine = make_engine(database_url, pool_size=1)
    try:
        with make_sessions(engine)() as session:
            yield session
    finally:
        engine.dispose()


def running_database(data_dir: Path) -> str:
    """The database of the `mergery up` that runs on ``data_dir``. Raises ``NotRunning``."""
    try:
        return (data_dir / URL_FILE).read_text().strip()
    except FileNotFoundError:
        raise NotRunning(
            f"no database: set DATABASE_URL, or start `mergery up` first (nothing runs in {data_dir})"
        ) from None


def _starters(settings: Settings) -> list[Starter]:
    """What starts the embedded servers that no URL stands for."""
    wanted = {start_postgres: settings.database_url, start_valkey: settings.broker_url}
    return [start for start, url in wanted.items() if url is None]


class Guard:
    """Looks after the embedded servers: a dead one is started again on the same data."""

    def __init__(self, data_dir: Path, servers: list[Server], starters: list[Starter]) -> None:
        self._data_dir = data_dir
        self._watched = list(zip(servers, starters, strict=True))

    def look(self) -> dict[str, str]:
        """One round. Gives the variables with the URLs of servers that had to move, as Valkey does where
        another program has taken its port meanwhile.
        """
        moved = {}
        for place, (server, start) in enumerate(self._watched):
            if server.pid is None:
                _say(f"{server.name} ended; starting it again")
                try:
                    revived = start(self._data_dir)
                except EmbeddedServerError as error:
                    _say(str(error))  # a disk that is full, say, may have room in the next round
                    continue
                self._watched[place] = (revived, start)
                if revived.url != server.url:
                    moved[URL_VARIABLES[server.name]] = revived.url
        return moved


def _remember_database(data_dir: Path, url: str) -> Path:
    file = data_dir / URL_FILE
    file.touch(mode=0o600)
    file.write_text(url)
    return file


def _print_first_key(database_url: str) -> None:
    with _session(database_url) as session:
        none_yet = tokens.count_keys(session) == 0
    if none_yet:
        secret = create_key(database_url, "default", "first", ["admin"])
        print(f"First admin API key (shown once): {secret}", flush=True)


def _environment(settings: Settings, database_url: str, broker_url: str) -> dict[str, str]:
    return {
        **os.environ,
        URL_VARIABLES["postgres"]: database_url,
        URL_VARIABLES["valkey"]: broker_url,
        "MERGERY_DATA_DIR": str(settings.data_dir),
        "MERGERY_HOST": settings.host,
        "MERGERY_PORT": str(settings.port),
        "MERGERY_SECRET_KEY": settings.secret(),
    }


def _parts(options: argparse.Namespace) -> list[Part]:
    cpu = mergery("worker", "--queues", "cpu", "--concurrency", str(options.workers))
    gpus = [
        mergery("worker", "--queues", "gpu", "--device", f"cuda:{index}") for index in range(options.gpus)
    ]
    return [
        Part("api", mergery("api")),
        Part("dispatcher", mergery("dispatcher")),
        Part("worker-cpu", cpu, stop_signal=signal.SIGQUIT),
        *(Part(f"worker-gpu-{i}", command, stop_signal=signal.SIGQUIT) for i, command in enumerate(gpus)),
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
