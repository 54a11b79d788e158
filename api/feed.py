"""What the database says has changed: one listener a process, fanned out to streams and waiting requests.

A wake-up carries nothing but "look again": what happened is read from the rows, so a lost one costs at most
the poll interval of the waiter.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import structlog

log = structlog.get_logger("api.feed")

POLL_SECONDS = 5.0
RETRY_SECONDS = 1.0
STREAMS_MOST = 1000
KEY = "key_"

Listen = Callable[[Callable[[], bool]], Iterator[str | None]]
"""Given ``should_stop``, yields ids (of jobs that change and of keys that are revoked) as it happens, and
``None`` whenever it may have missed some."""


class Waiter:
    """One interest in one job."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()

    async def wait(self, seconds: float = POLL_SECONDS) -> bool:
        """True when the job changed, False after ``seconds`` without news."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.woken.wait(), seconds)
        woken = self.woken.is_set()
        self.woken.clear()
        return woken


class Feed:
    """Runs ``listen`` in a thread from the first need on, again whenever its connection breaks.

    ``on_key`` is called when a key was revoked, or may have been while nobody listened.
    """

    def __init__(
        self,
        listen: Listen,
        most: int = STREAMS_MOST,
        retry_seconds: float = RETRY_SECONDS,
        on_key: Callable[[], None] = lambda: None,
    ) -> None:
        self.listen = listen
        self.on_key = on_key
        self.hearing = False
        self.most = most
        self.retry_seconds = retry_seconds
        self.waiters: dict[str, set[Waiter]] = defaultdict(set)
        self.stopping = threading.Event()
        self.closed = asyncio.Event()
        self.thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def has_room(self) -> bool:
        """Whether one more may wait in this process."""
        return sum(len(each) for each in self.waiters.values()) < self.most

    def start(self) -> None:
        """Begins to listen, if it does not yet; from the event loop only."""
        if self.thread is None:
            self.loop = asyncio.get_running_loop()
            self.thread = threading.Thread(target=self._run, name="feed", daemon=True)
            self.thread.start()

    async def stop(self) -> None:
        """Ends the thread and every stream."""
        self.stopping.set()
        self.closed.set()
        self._wake(None)
        if self.thread:
            await asyncio.to_thread(self.thread.join, 10)

    @asynccontextmanager
    async def waiting(self, job_id: str) -> AsyncIterator[Waiter]:
        """A waiter for ``job_id``; ask ``has_room`` first."""
        self.start()
        waiter = Waiter()
        self.waiters[job_id].add(waiter)
        try:
            yield waiter
        finally:
            self.waiters[job_id].discard(waiter)
            if not self.waiters[job_id]:
                del self.waiters[job_id]

    def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                for each in self.listen(self.stopping.is_set):
                    self._hear(each)
            except Exception as error:
                if not self.stopping.is_set():
                    log.warning("feed_lost", error=str(error))
            finally:
                self.hearing = False
                self.on_key()
            self.stopping.wait(self.retry_seconds)

    def _hear(self, row_id: str | None) -> None:
        if row_id is None or row_id.startswith(KEY):
            self.on_key()
            self.hearing = True
        if self.loop and not self.loop.is_closed() and not self.stopping.is_set():
            self.loop.call_soon_threadsafe(self._wake, row_id)

    def _wake(self, job_id: str | None) -> None:
        chosen = list(self.waiters) if job_id is None else [job_id]
        for each in chosen:
            for waiter in self.waiters.get(each, ()):
                waiter.woken.set()
