"""`mergery api`: one server process a core, all of them on one port."""

import os
import signal
import socket
import sys
import tempfile

import uvicorn

from api.app import create_app
from api.metrics import FOLDER
from cli.errors import NotRunning
from cli.supervisor import Part, Supervisor, end_with_parent, mergery
from settings import Settings
from worker.log import configure_logging

MOST_PROCESSES = 4
BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
GRACE_SECONDS = 10


def count_processes(settings: Settings) -> int:
    """As many as were asked for, or one a core that this process may use, at most four."""
    return settings.api_processes or min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def serve(settings: Settings) -> int:
    """Serves until told to stop. Raises ``OSError`` when the port is another's, ``NotRunning`` without a
    database.
    """
    if settings.database_url is None:
        raise NotRunning("no database: set DATABASE_URL, or start `mergery up`, which brings its own")
    configure_logging(settings.log_level)
    count = count_processes(settings)
    if count == 1:
        return serve_alone(settings)
    _bind(settings, shared=False).close()
    with tempfile.TemporaryDirectory(prefix="mergery-metrics-") as folder:
        environment = {**os.environ, "MERGERY_API_PROCESSES": "1", FOLDER: folder}
        parts = [Part(f"api-{number}", mergery("api", "--shared")) for number in range(count)]
        Supervisor(parts, environment, guard=dict, say=_say).run()
    return 0


def serve_alone(settings: Settings, *, shared: bool = False) -> int:
    """One process; with ``shared`` it is one of several on the port, and ends when their parent does."""
    if shared:
        configure_logging(settings.log_level)
        end_with_parent(signal.SIGKILL)
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # Event streams stay open for ever: do not wait for them.
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    with _bind(settings, shared=shared) as door:
        uvicorn.Server(config).run(sockets=[door])
    return 0


def _bind(settings: Settings, *, shared: bool) -> socket.socket:
    """The listening socket. With ``shared`` others may have the port too; the kernel deals callers out."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    door = socket.socket(family)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        door.bind((settings.host, settings.port))
        door.listen(BACKLOG)
    except OSError:
        door.close()
        raise
    return door


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
