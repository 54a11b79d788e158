"""The dispatcher: rings for ready jobs, finds lost and late ones, sends due webhooks. Any number may run.

It keeps nothing that matters in memory: rows say what is due, and a round that fails is simply done again.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import FrameType

import structlog

from db.listen import listen
from db.session import make_engine, make_sessions
from jobs import tally
from jobs.keyring import Keyring
from jobs.tally import Hear
from settings import Settings
from worker.address import parse_networks
from worker.app import announce, database_of, lying, make_app
from worker.context import Transaction
from worker.courier import Courier
from worker.deliver import Sender
from worker.log import configure_logging
from worker.metrics import Numbers
from worker.sweep import Doorbell, Keeping, Recovery, expire, prune

log = structlog.get_logger("worker.dispatcher")

SWEEP_SECONDS = 10.0
PRUNE_SECONDS = 3600.0
LEASE_SECONDS = 60.0
PAUSE_SECONDS = 0.05
RECONNECT_SECONDS = 1.0

Listen = Callable[[Callable[[], bool]], Iterator[str | None]]


@dataclass
class Dispatcher:
    """Four loops: the main one, one for webhooks, a listener that wakes both when a job changes, and one that
    forgets what nobody needs any more, however much that is.
    """

    transaction: Transaction
    doorbell: Doorbell
    courier: Courier
    listen: Listen
    keeping: Keeping
    poll_seconds: float
    sweep_seconds: float = SWEEP_SECONDS
    prune_seconds: float = PRUNE_SECONDS
    lease_seconds: float = LEASE_SECONDS
    stopping: threading.Event = field(default_factory=threading.Event)
    _jobs_changed: threading.Event = field(default_factory=threading.Event, init=False)
    _mail_waits: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self) -> None:
        """Returns when ``stop`` was called, after the round in progress."""
        threads = [
            threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True)
            for target in (self._listen, self._send_mail, self._forget)
        ]
        for thread in threads:
            thread.start()
        log.info("dispatcher_started")
        self._look_after_jobs()
        for thread in threads:
            thread.join(timeout=self.poll_seconds + RECONNECT_SECONDS + 1)
        self.courier.close()
        log.info("dispatcher_stopped")

    def stop(self) -> None:
        """Ends every loop after its present round."""
        self.stopping.set()
        self._jobs_changed.set()
        self._mail_waits.set()

    def wake_mail(self) -> None:
        """Looks for due webhooks now."""
        self._mail_waits.set()

    def _look_after_jobs(self) -> None:
        recovery = Recovery(self.transaction, self.lease_seconds)
        swept_at = float("-inf")
        while not self.stopping.is_set():
            if time.monotonic() - swept_at >= self.sweep_seconds:
                swept_at = time.monotonic()
                self._attempt("sweep", lambda: (recovery.look(), expire(self.transaction)))
            self._attempt("announce", self.doorbell.announce_due)
            self._rest(self._jobs_changed)

    def _forget(self) -> None:
        while not self.stopping.is_set():
            self._attempt("prune", lambda: prune(self.transaction, self.keeping, self.stopping.is_set))
            self.stopping.wait(self.prune_seconds)

    def _send_mail(self) -> None:
        while not self.stopping.is_set():
            self._attempt("deliver", self.courier.deliver_due)
            self._rest(self._mail_waits)

    def _rest(self, woken: threading.Event) -> None:
        woken.wait(self.poll_seconds)
        woken.clear()
        self.stopping.wait(PAUSE_SECONDS)

    def _listen(self) -> None:
        while not self.stopping.is_set():
            try:
                for _ in self.listen(self.stopping.is_set):
                    self._jobs_changed.set()
                    self._mail_waits.set()
            except Exception as error:
                log.warning("listening_interrupted", error=str(error))
            self.stopping.wait(RECONNECT_SECONDS)

    def _attempt(self, duty: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            # Database or broker away: the rows keep what is due, the next round finds it.
            log.warning("round_failed", duty=duty, error=str(error), kind=type(error).__name__)


def run_dispatcher(settings: Settings) -> None:
    """Runs a dispatcher until SIGTERM or SIGINT."""
    configure_logging(settings.log_level)
    numbers = Numbers()
    numbers.serve(settings.metrics_host, settings.dispatcher_metrics_port)
    dispatcher = open_dispatcher(settings, numbers.hear)

    def stop(_number: int, _frame: FrameType | None) -> None:
        dispatcher.stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, stop)
    dispatcher.run()
    numbers.close()


def open_dispatcher(settings: Settings, hear: Hear = lambda _fact: None) -> Dispatcher:
    """A dispatcher over the database and the broker which the settings name; ``hear`` counts what it does."""
    sessions = make_sessions(make_engine(database_of(settings), pool_size=4, max_overflow=16))
    tally.listen(sessions, hear)
    app = make_app(settings)
    sender = Sender(
        allow_http=settings.webhook_allow_http, allowed=parse_networks(settings.webhook_allow_networks)
    )
    courier = Courier(
        sessions.begin,
        Keyring(settings.secret()),
        sender,
        settings.webhook_retry_seconds,
        owner=f"{socket.gethostname()}:{os.getpid()}",
    )
    dispatcher = Dispatcher(
        sessions.begin,
        Doorbell(
            sessions.begin,
            lambda job_id, queue: announce(app, job_id, queue),
            settings.announce_after_seconds,
            partial(lying, app),
        ),
        courier,
        partial(listen, database_of(settings)),
        Keeping(
            settings.keep_scores_seconds,
            settings.keep_deliveries_seconds,
            settings.keep_datasets_seconds,
            settings.keep_jobs_seconds,
        ),
        settings.dispatch_poll_seconds,
        min(SWEEP_SECONDS, settings.lease_seconds / 4),
        lease_seconds=settings.lease_seconds,
    )
    courier.on_free = dispatcher.wake_mail
    return dispatcher
