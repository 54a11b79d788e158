"""Sends finished shards to the Hub while the next ones are merged."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

LOOK_SECONDS = 0.2
HANDS = 2


@dataclass
class Uploads:
    """Two uploads at a time, begun in the order of the shards, so that one is hashed and announced while the
    other is sent. Merging does not wait for them: its files lie on the disk in any case, and checking the
    result can begin while the last of them are on their way.

    ``send`` uploads one file under a name; ``checkpoint`` raises when the job is to stop. Used as a context
    manager: leaving it drops the uploads that have not begun. One that hangs then is left to a daemon thread,
    since the Hub's library cannot be interrupted.
    """

    send: Callable[[str, Path], None]
    checkpoint: Callable[[], None]
    _waiting: deque[Future[None]] = field(default_factory=deque, init=False)
    _queue: "SimpleQueue[tuple[Future[None], str, Path] | None]" = field(
        default_factory=SimpleQueue, init=False
    )

    def __enter__(self) -> "Uploads":
        for _ in range(HANDS):
            threading.Thread(target=self._run, name="upload", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in self._waiting:
            future.cancel()
        for _ in range(HANDS):
            self._queue.put(None)

    def add(self, name: str, path: Path) -> None:
        """Hands one finished file over; raises what an earlier upload failed with."""
        future: Future[None] = Future()
        self._waiting.append(future)
        self._queue.put((future, name, path))
        while self._waiting and self._waiting[0].done():
            self._settle_first()

    def finish(self) -> None:
        """Waits until everything has arrived."""
        while self._waiting:
            self._settle_first()

    def _settle_first(self) -> None:
        first = self._waiting[0]
        while not first.done():
            self.checkpoint()
            wait([first], timeout=LOOK_SECONDS)
        self._waiting.popleft()
        first.result()

    def _run(self) -> None:
        while (order := self._queue.get()) is not None:
            future, name, path = order
            if not future.set_running_or_notify_cancel():
                continue
            try:
                self.send(name, path)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)
