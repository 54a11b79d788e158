"""What a pool child does: loads the engine when it starts, then runs one job a message.

The parent imports this module too, so torch and the engine are imported inside the functions only.
"""

import os
import secrets
import signal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from celery import shared_task
from celery.exceptions import Reject
from celery.signals import worker_process_init

from worker import device as devices
from worker.app import DEVICE_VARIABLE, TASK
from worker.board import BOARD_VARIABLE, Board
from worker.errors import DeviceMissing, DiskUnusable
from worker.pinning import CPU

if TYPE_CHECKING:
    from worker.workshop import Workshop

log = structlog.get_logger("worker.child")


@cache
def workshop() -> "Workshop":
    """What all jobs of this child share: settings, database, device."""
    from settings import Settings
    from worker.log import configure_logging
    from worker.workshop import Workshop

    settings = Settings()
    configure_logging(settings.log_level)
    folder = os.environ.get(BOARD_VARIABLE)
    board = Board(Path(folder)) if folder else None
    return Workshop.open(settings, device=os.environ.get(DEVICE_VARIABLE, CPU), board=board)


@worker_process_init.connect  # type: ignore[untyped-decorator]
def load_engine(**_: Any) -> None:
    """Imports torch and the engine before the first job arrives."""
    workshop().warm_up()
    log.info("child_ready", pid=os.getpid())
    if not devices.is_there(workshop().device):
        _give_up("the GPU of this worker is not there")


@shared_task(name=TASK, ignore_result=True)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Runs the next job of the queue in which this one was announced, if any is ready; else the message is a
    duplicate and is dropped. Without a device that computes, or a disk, it is left to another worker.
    """
    from worker.run_job import run_next

    try:
        run_next(workshop(), job_id, owner=f"{os.uname().nodename}:{os.getpid()}:{secrets.token_hex(4)}")
    except (DeviceMissing, DiskUnusable) as error:
        _give_up(str(error))
        raise Reject(requeue=True) from None


def _give_up(reason: str) -> None:
    """Has the parent end this worker, which would only take jobs from others."""
    log.error("device_unusable", detail=reason)
    board = workshop().board
    if board is None:
        return
    try:
        board.declare_unfit()
    except OSError:  # it lies on the disk that cannot be written
        os.kill(os.getppid(), signal.SIGTERM)
