"""The Celery app: how messages travel and how children run. Loads no torch, opens no connection."""

import os
import socket
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import setup_logging

from settings import Settings
from worker.board import BOARD_VARIABLE, Board, is_healthy
from worker.errors import SettingMissing
from worker.log import configure_logging
from worker.pinning import CPU, pin

TASK = "mergery.run_job"
QUEUES = ("cpu", "gpu")
DEVICE_VARIABLE = "MERGERY_WORKER_DEVICE"
VISIBILITY_SECONDS = 12 * 3600
CHILD_START_SECONDS = 180.0
JOBS_PER_CHILD = {"cpu": 16, "gpu": 1}
CONNECTION = {
    "socket_keepalive": True,
    "health_check_interval": 25,
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
}
MANNERS: dict[str, Any] = {
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_acks_on_failure": True,
    "task_acks_on_timeout": True,
    "task_ignore_result": True,
    "task_store_errors_even_if_ignored": False,
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_queues": {name: {} for name in QUEUES},
    "task_default_queue": "cpu",
    "task_create_missing_queues": False,
    "worker_prefetch_multiplier": 1,
    "worker_pool_start_method": "spawn",
    "worker_proc_alive_timeout": CHILD_START_SECONDS,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_soft_shutdown_timeout": 60.0,
    "worker_enable_soft_shutdown_on_idle": False,
    "worker_send_task_events": True,
    "task_send_sent_event": True,
    "worker_redirect_stdouts": False,
}
"""How messages travel and children run, whatever the settings are."""


@setup_logging.connect  # type: ignore[untyped-decorator]
def leave_logging_alone(**_: Any) -> None:
    """Being connected is enough: Celery then sets up no logging of its own, in parent and children."""


def make_app(settings: Settings) -> Celery:
    """The app which dispatcher and workers share. Raises ``SettingMissing`` without a broker.

    Messages are hints and the database decides, so nothing here has to be quick to redeliver: the visibility
    timeout is longer than any job, and there is no result backend.
    """
    if settings.broker_url is None:
        raise SettingMissing("no broker: set BROKER_URL, or start `mergery up`, which brings its own")
    app = Celery("mergery", broker=settings.broker_url, include=["worker.child"], set_as_current=False)
    hard_limit = settings.job_timeout_seconds + 600
    visibility = max(VISIBILITY_SECONDS, int(2 * hard_limit))
    app.conf.update(
        MANNERS,
        broker_transport_options={**CONNECTION, "visibility_timeout": visibility},
        visibility_timeout=visibility,
        task_time_limit=hard_limit,
    )
    return app


def database_of(settings: Settings) -> str:
    """The database's URL. Raises ``SettingMissing``."""
    if settings.database_url is None:
        raise SettingMissing("no database: set DATABASE_URL, or start `mergery up`, which brings its own")
    return settings.database_url


def announce(app: Celery, job_id: str, queue: str, connection: Any = None) -> None:
    """Rings the doorbell: tells the workers of ``queue`` that ``job_id`` is ready; sends only the id."""
    app.send_task(TASK, args=[job_id], queue=queue, ignore_result=True, retry=False, connection=connection)


def lying(app: Celery, queue: str) -> int:
    """How many messages of ``queue`` no worker has taken."""
    with app.pool.acquire(block=True) as connection, connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0  # nothing was ever sent there


def run_worker(
    settings: Settings, queues: Sequence[str], concurrency: int = 1, device: str | None = None
) -> int:
    """Runs a Celery worker for ``queues`` until it is told to stop, or its GPU cannot be used; returns its
    exit code.

    ``device``: see :func:`worker.pinning.pin`. SIGTERM and SIGQUIT both hand running jobs back to the queue.
    """
    from worker.metrics import Gpus, Numbers
    from worker.supervisor import Supervisor

    configure_logging(settings.log_level)
    app = make_app(settings)
    chosen = pin(queues, device)
    kind = "cpu" if chosen == CPU else "gpu"
    settings.scratch.mkdir(parents=True, exist_ok=True)
    board = Board.create(settings.scratch)
    _tell_children(settings, board, chosen)
    numbers = Numbers()
    if kind == "gpu":
        numbers.registry.register(Gpus())
    numbers.serve(settings.metrics_host, settings.worker_metrics_port)
    supervisor = Supervisor.start(settings, board, numbers.hear)
    worker = _prefork(app, queues, concurrency, kind, settings.log_level)
    _quieten_children()
    try:
        worker.start()
    finally:
        supervisor.stop()
        numbers.close()
    return os.EX_UNAVAILABLE if supervisor.unfit else int(worker.exitcode or 0)


def _prefork(app: Celery, queues: Sequence[str], concurrency: int, kind: str, log_level: str) -> Any:
    """Celery's worker, with a child for each job at a time."""
    return app.Worker(
        hostname=f"{kind}-{os.getpid()}@{socket.gethostname()}",
        queues=list(queues),
        concurrency=concurrency,
        pool="prefork",
        optimization="fair",
        max_tasks_per_child=JOBS_PER_CHILD[kind],
        loglevel=log_level,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )


def _tell_children(settings: Settings, board: Board, device: str) -> None:
    """Puts into the environment what a child reads there when it starts."""
    export(settings, os.environ)
    os.environ[BOARD_VARIABLE] = str(board.folder)
    os.environ[DEVICE_VARIABLE] = device
    for name, value in library_environment(settings.scratch).items():
        os.environ.setdefault(name, value)


def _quieten_children() -> None:
    """Celery's worker asks children by these variables to log in its own form before their program runs."""
    for name in [name for name in os.environ if name.startswith("_MP_FORK_LOG")]:
        del os.environ[name]


def library_environment(scratch: Path) -> dict[str, str]:
    """What libraries read once, when a child loads them.

    The Hub's client uses no token but the job's own, reports nothing home, and keeps its files on the work
    disk. Idle OpenMP threads sleep: by default they spin, which made scoring four times slower on a machine
    that does anything else beside.
    """
    home = scratch / "hub"
    return {
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "60",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "cache"),
        "HF_XET_CACHE": str(home / "xet"),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def check_health(settings: Settings) -> int:
    """Exit code for a container's health check: 0 while a worker of this host runs and reaches the broker."""
    return 0 if is_healthy(settings.scratch) else 1


def export(settings: Settings, environment: MutableMapping[str, str]) -> None:
    """Puts the settings that were given into ``environment``, from which children read them."""
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is None:
            continue
        if hasattr(value, "get_secret_value"):
            text = value.get_secret_value()
        elif isinstance(value, list):
            text = (":" if name == "model_roots" else ",").join(str(part) for part in value)
        else:
            text = str(value)
        environment[f"MERGERY_{name.upper()}"] = text
