"""Sends finished shards to the Hub while the next ones are merged."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

LOOK_SECONDS = 0.2
MOST_WAITING = 2


@dataclass
class Uploads:
    """One upload at a time, in the order of the shards; merging waits when it is two shards ahead.

    ``send`` uploads one file under a name; ``checkpoint`` raises when the job is to stop. Used as a context
    manager: leaving it drops the uploads that have not begun.
    """

    send: Callable[[str, Path], None]
    checkpoint: Callable[[], None]
    _waiting: deque[Future[None]] = field(default_factory=deque, init=False)
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="upload")

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def add(self, name: str, path: Path) -> None:
        """Hands one finished file over; raises what an earlier upload failed with."""
        self._waiting.append(self._pool.submit(self.send, name, path))
        while self._waiting and (len(self._waiting) > MOST_WAITING or self._waiting[0].done()):
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
