"""Threads that work through queues of jobs."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

import torch

J = TypeVar("J")


class _Queue(Generic[J]):
    """Jobs in their order, some of them made ahead: making one may take a while, for which only one thread
    should wait.
    """

    def __init__(self, jobs: Iterable[J], threads: int) -> None:
        self._jobs = iter(jobs)
        self._most = 2 * threads if threads > 1 else 0
        self._made: deque[J] = deque()
        self._lock = threading.Lock()

    def take(self) -> J:
        """The next one; raises ``StopIteration`` when there are no more."""
        if self._lock.acquire(blocking=not self._made):
            try:
                for _ in range(min(2, self._most + 1 - len(self._made))):
                    self._made.append(next(self._jobs))
            except StopIteration:
                pass
            finally:
                self._lock.release()
        try:
            return self._made.popleft()
        except IndexError:
            with self._lock:
                return self._made.popleft() if self._made else next(self._jobs)


class _Turns(Generic[J]):
    """Several queues, of which a thread takes one that no other is at, if there is one."""

    def __init__(self, queues: Sequence[_Queue[J]]) -> None:
        self._lock = threading.Lock()
        self._queues = list(queues)
        self._inside = dict.fromkeys(queues, 0)
        self._taken = dict.fromkeys(queues, 0)

    def do_next(self, work: Callable[[J], None]) -> bool:
        """Does ``work`` on the next job of the queue that the fewest threads are at, of those the one from
        which least was taken; false when all are at their end.
        """
        with self._lock:
            if not self._queues:
                return False
            queue = min(self._queues, key=lambda queue: (self._inside[queue], self._taken[queue]))
            self._inside[queue] += 1
            self._taken[queue] += 1
        try:
            try:
                job = queue.take()
            except StopIteration:
                with self._lock:
                    self._queues = [other for other in self._queues if other is not queue]
            else:
                work(job)
        finally:
            with self._lock:
                self._inside[queue] -= 1
        return True


class Crew:
    """A few threads that take jobs from queues, from each in its order."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "merge", torch.set_num_threads, (1,))

    def each(self, jobs: Iterable[J], work: Callable[[J], None]) -> None:
        """Does ``work`` on every job and returns when all are done; the first failure stops the rest and is
        raised.
        """
        self.each_of((jobs,), work)

    def each_of(self, queues: Sequence[Iterable[J]], work: Callable[[J], None]) -> None:
        """Likewise of several queues; no two threads are at one while there are others."""
        turns = _Turns([_Queue(jobs, self._threads) for jobs in queues])
        failed = threading.Event()

        def loop() -> None:
            try:
                while not failed.is_set() and turns.do_next(work):
                    pass
            except BaseException:
                failed.set()
                raise

        futures = [self._pool.submit(loop) for _ in range(self._threads)]
        try:
            wait(futures)
        finally:  # where a signal ended the waiting, what the threads work with is closed next
            failed.set()
            wait(futures)
        for future in futures:
            future.result()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
