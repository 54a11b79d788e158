"""Files of a snapshot onto the disk: checked against the commit, resumed where they broke off, stopped when
asked.

Below the target folder, ``.mergery-download`` holds unfinished files and one small marker for each file that
has been checked, so that a later call neither fetches nor hashes it again.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from hub import xet
from hub.errors import DiskFull, HashMismatch, HubError, Interrupted, NameRefused, Unavailable
from hub.names import is_safe_path
from hub.session import PIECE, arriving
from hub.snapshot import Hub, RepoFile, Snapshot

WORK_FOLDER = ".mergery-download"
FILES_AT_ONCE = 4
STALLED_TRIES = 4


def download(
    hub: Hub,
    snapshot: Snapshot,
    folder: Path,
    names: Iterable[str],
    *,
    on_bytes: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Put the named files of the snapshot into ``folder``, each under its own path there.

    ``on_bytes`` gets the number of bytes that are there in addition (also for files found finished; negative
    when bytes turned out wrong and are fetched again), from any thread but one call at a time. Raises
    ``Interrupted`` soon after ``should_stop`` says so; what has arrived is kept for the next call. Other
    failures: ``HashMismatch``, ``DiskFull``, ``FileMissing``, or what the Hub said.
    """
    files = [snapshot.file(name) for name in dict.fromkeys(names)]
    folder.mkdir(parents=True, exist_ok=True)
    lock, failed = threading.Lock(), threading.Event()

    def count(number: int) -> None:
        if number:
            with lock:
                on_bytes(number)

    def stop() -> bool:
        return failed.is_set() or should_stop()

    targets = [Target(folder, file, f"{file.path} of {snapshot.label}") for file in files]
    _check_room(folder, targets)
    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="hub-download") as pool:
        tasks = [pool.submit(fetch_checked, hub, snapshot, target, count, stop) for target in targets]
        try:
            done, waiting = wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            failed.set()
        for task in waiting:
            task.cancel()
    errors = [error for task in done if (error := task.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, Interrupted)):
        raise error


class Target:
    """One file on its way: where it will be, where it grows, and the marker that says it has been checked."""

    def __init__(self, folder: Path, file: RepoFile, label: str) -> None:
        if not is_safe_path(file.path) or file.path.split("/")[0] == WORK_FOLDER:
            raise NameRefused(f"{label}: this file name is not safe")
        self.file, self.label = file, label
        self.path = folder / file.path
        key = hashlib.sha256(f"{file.path}\n{file.sha256 or file.git_oid}".encode()).hexdigest()[:32]
        self.part = folder / WORK_FOLDER / f"{key}.part"
        self._marker = folder / WORK_FOLDER / f"{key}.json"
        self._folder = folder

    def is_done(self) -> bool:
        """Whether the file is in place and unchanged since it was checked."""
        try:
            marker, status = json.loads(self._marker.read_bytes()), self.path.stat()
        except (OSError, ValueError):
            return False
        return bool(marker == [status.st_size, status.st_mtime_ns])

    def here(self) -> int:
        """Bytes of the unfinished file."""
        return self.part.stat().st_size if self.part.exists() else 0

    def prepare(self) -> None:
        """Make the folders; a link planted in the way is refused."""
        for parent in (self.path.parent, self.part.parent):
            parent.mkdir(parents=True, exist_ok=True)
            if not parent.resolve().is_relative_to(self._folder.resolve()):
                raise NameRefused(f"{self.label} would be written outside its folder")

    def finish(self) -> None:
        """Move the checked file into place, then leave the marker."""
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
        self.part.replace(self.path)
        self.mark()

    def mark(self) -> None:
        """Leave the marker for the file in place, which has been checked."""
        status = self.path.stat()
        temporary = self._marker.with_suffix(".tmp")
        temporary.write_text(json.dumps([status.st_size, status.st_mtime_ns]), encoding="ascii")
        temporary.replace(self._marker)


def _check_room(folder: Path, targets: list[Target]) -> None:
    needed = sum(target.file.size - target.here() for target in targets if not target.is_done())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(
            f"the download needs {needed} bytes and the work disk has {free} left; free some space"
        )


def fetch_checked(
    hub: Hub, snapshot: Snapshot, target: Target, count: Callable[[int], None], stop: Callable[[], bool]
) -> None:
    """One whole file, in its place once it has been checked."""
    if target.is_done():
        count(target.file.size)
        return
    target.prepare()
    for _ in range(2):
        _fetch(hub, snapshot, target, count, stop)
        if _digest(target, stop) == (target.file.sha256 or target.file.git_oid):
            target.finish()
            return
        target.part.unlink()
        count(-target.file.size)
    raise HashMismatch(f"{target.label} arrives with other content than the commit lists")


def _fetch(
    hub: Hub, snapshot: Snapshot, target: Target, count: Callable[[int], None], stop: Callable[[], bool]
) -> None:
    if xet.offers_xet(hub, target.file) and target.here() == 0:
        counted = _Counted(count)
        try:
            xet.fetch(hub, snapshot, target.file, target.part, counted, stop)
            counted(target.file.size - counted.total)
            return
        except Unavailable:
            counted(-counted.total)
            target.part.unlink(missing_ok=True)
        except Interrupted:
            target.part.unlink(missing_ok=True)
            raise
    _fetch_http(hub, snapshot, target, count, stop)


class _Counted:
    """Passes byte counts on and remembers their sum."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self.total = 0
        self._count = count

    def __call__(self, number: int) -> None:
        self.total += number
        self._count(number)


def _fetch_http(
    hub: Hub, snapshot: Snapshot, target: Target, count: Callable[[int], None], stop: Callable[[], bool]
) -> None:
    """Grow the part until it is whole; tries that bring bytes do not count against the number of tries."""
    if target.here() > target.file.size:
        target.part.unlink()
    count(target.here())
    stalled = 0
    while (begin := target.here()) < target.file.size or not target.part.exists():
        try:
            hub.session.call(target.label, lambda: _grow(hub, snapshot, target, count, stop), tries=1)
        except HubError as error:
            stalled = stalled + 1 if target.here() <= begin else 0
            if not error.retryable or stalled >= STALLED_TRIES or not hub.session.pause(error, stalled):
                raise


def _grow(
    hub: Hub, snapshot: Snapshot, target: Target, count: Callable[[int], None], stop: Callable[[], bool]
) -> None:
    begin, size = target.here(), target.file.size
    if size == 0:
        target.part.touch()
        return
    with hub.opened(snapshot, target.file.path, begin, size) as (response, at):
        count(at - begin)
        with target.part.open("ab") as file:
            file.truncate(at)
            for piece in arriving(response):
                if stop():
                    raise Interrupted(f"stopped while {target.label} was arriving")
                if at + len(piece) > size:
                    raise Unavailable(f"{target.label} is longer than the commit lists")
                file.write(piece)
                at += len(piece)
                count(len(piece))
    if target.here() < size:
        raise Unavailable(f"{target.label} ended early")


def _digest(target: Target, stop: Callable[[], bool]) -> str:
    """sha256 of a large file, git blob id of any other."""
    if target.file.sha256:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % target.here(), usedforsecurity=False)
    for piece in pieces_of(target.part):
        if stop():
            raise Interrupted(f"stopped while {target.label} was being checked")
        digest.update(piece)
    return digest.hexdigest()


def pieces_of(path: Path) -> Iterator[bytes]:
    """The content of a file, a few MiB at a time."""
    with path.open("rb") as file:
        while piece := file.read(4 * PIECE):
            yield piece
