"""What all jobs of one child process share: settings, database, keys, device."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from db.session import make_engine, make_sessions
from hub.snapshot import Hub
from jobs import tally
from jobs.keyring import Keyring
from jobs.metrics import watch_hub
from settings import Settings
from worker import device as devices
from worker.app import database_of
from worker.board import Board
from worker.context import Rhythm, Transaction
from worker.log import adopt_libraries
from worker.pinning import CPU
from worker.scratch import free_bytes

log = structlog.get_logger("worker.workshop")


@dataclass(frozen=True)
class Workshop:
    """Opened once a child; a job gets everything it needs from here as arguments."""

    settings: Settings
    transaction: Transaction
    keyring: Keyring
    device: str
    board: Board | None
    free_bytes: Callable[[Path], int] = free_bytes
    free_memory: Callable[[str], int] = devices.free_memory

    @classmethod
    def open(cls, settings: Settings, *, device: str = CPU, board: Board | None = None) -> "Workshop":
        """Connects to nothing yet, so that a child starts while its database is away."""
        sessions = make_sessions(make_engine(database_of(settings), pool_size=2))
        if board is not None:
            tally.listen(sessions, board.tell)
            watch_hub(board.tell)
        return cls(settings, sessions.begin, Keyring(settings.secret()), device, board)

    @property
    def rhythm(self) -> Rhythm:
        """How often the jobs of this worker show that they are alive."""
        return Rhythm(self.settings.lease_seconds, self.settings.heartbeat_seconds)

    def hub(self, token: str | None, sleep: Callable[[float], None] = time.sleep) -> Hub:
        """The Hub as this token sees it; ``sleep`` makes the pauses before another try."""
        return Hub(self.settings.hub_endpoint, token, sleep=sleep)

    def warm_up(self) -> None:
        """Loads torch, the engine and every method, so that the first job does not wait for them."""
        import torch

        import merge.run  # noqa: F401
        import worker.run_job  # noqa: F401
        from merge.methods import load

        load()
        adopt_libraries()
        torch.set_num_threads(devices.count_threads(self.settings.threads))
        log.info("engine_loaded", device=self.device, usable=devices.is_there(self.device))
