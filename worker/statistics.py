"""Statistics that are kept on this disk, by tenant and digest; a folder is there as a whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import structlog

from jobs.scratch import bytes_in
from merge.learn.turns import only_one
from worker.artifacts import keep
from worker.scratch import is_linked

log = structlog.get_logger("worker.statistics")

Key = tuple[str, str]


@dataclass
class Store:
    """``<root>/<tenant>/<digest>``. Used as a context manager by one job: what it holds stays until then.

    A folder that is held has a shared ``flock``, which the kernel drops when the process dies.
    """

    root: Path
    tenant: str
    _held: dict[str, int] = field(default_factory=dict, init=False)

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for digest in tuple(self._held):
            self._let_go(digest)

    def folder(self, digest: str) -> Path:
        """Where the statistics of a digest are, or would be."""
        return self.root / self.tenant / digest

    def hold(self, digest: str) -> bool:
        """Keeps statistics from being removed while the job lasts; whether they are there."""
        if digest not in self._held:
            lock = _lock(self.folder(digest), fcntl.LOCK_SH)
            if lock < 0:
                return False
            self._held[digest] = lock
        return True

    def put(self, digest: str, made: Path) -> Path:
        """Moves a finished folder in, held from before it has its name: nobody can remove it in between."""

        def hold(folder: Path) -> None:
            self._let_go(digest)
            if (lock := _lock(folder, fcntl.LOCK_SH)) >= 0:
                self._held[digest] = lock

        while not self.hold(digest):
            keep(made, self.folder(digest), hold)
        return self.folder(digest)

    def _let_go(self, digest: str) -> None:
        lock = self._held.pop(digest, None)
        if lock is not None:
            os.close(lock)

    def only_one(self, digest: str, checkpoint: Callable[[], None]) -> AbstractContextManager[None]:
        """Lets one job at a time measure a digest; the others wait, asking ``checkpoint`` whether to stop."""
        return only_one(self.folder(digest), checkpoint)


def evict(root: Path, limit: int, oldest: Sequence[Key]) -> list[Key]:
    """Removes what was used longest ago until no more than ``limit`` bytes are kept, but nothing that a job
    holds. ``oldest`` are (tenant, digest), the longest unused first; what is not among them goes before.
    """
    ranks = {key: rank for rank, key in enumerate(oldest)}
    sizes = _sizes(root)
    total = sum(sizes.values())
    removed = []
    for key in sorted(sizes, key=lambda key: ranks.get(key, -1)):
        if total <= limit:
            break
        if _remove(root / key[0] / key[1]):
            total -= sizes[key]
            removed.append(key)
            log.info("statistics_removed", tenant=key[0], digest=key[1], bytes=sizes[key])
    return removed


def _sizes(root: Path) -> Mapping[Key, int]:
    folders = (path for path in root.glob("*/*") if path.is_dir() and not path.name.startswith("."))
    return {(path.parent.name, path.name): bytes_in(path) for path in folders}


def _remove(folder: Path) -> bool:
    lock = _lock(folder, fcntl.LOCK_EX)
    if lock < 0:
        return False
    try:
        gone = folder.with_name(f".{folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    finally:
        os.close(lock)
    return True


def _lock(folder: Path, how: int) -> int:
    """An open, locked folder; -1 where there is none, or somebody holds it otherwise."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    with suppress(BlockingIOError):
        fcntl.flock(lock, how | fcntl.LOCK_NB)
        if is_linked(lock, folder):
            return lock
    os.close(lock)
    return -1
