"""Processes that would measure the same into the same folder go one after another."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WAIT_SECONDS = 0.5


@contextmanager
def only_one(out: Path, check: Callable[[], None]) -> Iterator[None]:
    """Lets one process at a time make the folder ``out``, until it dies at the latest; the others wait,
    asking ``check`` whether to stop.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.measuring")
    while (lock := _locked(path)) < 0:
        check()
        time.sleep(WAIT_SECONDS)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _locked(path: Path) -> int:
    """An open, locked file; -1 where somebody else holds it, or has removed it meanwhile."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == path.stat().st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        return lock  # a file system without locks
    os.close(lock)
    return -1
