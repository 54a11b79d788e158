"""The work folder of a job: one a retry chain, locked while in use, gone when nobody returns."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from jobs.scratch import bytes_in, jobs_folder
from merge.journal import partial_folder
from worker.artifacts import GONE
from worker.errors import DiskBusy, DiskFull, DiskUnusable, WorkFolderBusy

RESERVE_BYTES = 64 << 20
LOCK_FILE = "lock"
FINISHED_FILE = "finished"
ROOM_FILE = "room"
"""Says how many bytes the folder may come to take while somebody works in it."""
CANDIDATE = "candidate"
LENT = "lent"


@dataclass
class WorkFolder:
    """``<scratch>/jobs/<root id>``: downloads, unfinished output and journal of a job and its retries.

    Used as a context manager; holds an exclusive ``flock`` which the kernel drops when the process dies.
    """

    scratch: Path
    root_id: str
    _lock: int = -1

    @property
    def path(self) -> Path:
        return jobs_folder(self.scratch) / self.root_id

    @property
    def inputs(self) -> Path:
        return self.path / "inputs"

    @property
    def output(self) -> Path:
        return self.path / "output"

    def __enter__(self) -> "WorkFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _try_lock(self.path)
        if self._lock < 0:
            raise WorkFolderBusy(
                f"another process still works in the folder of {self.root_id}; tried again later"
            )
        (self.path / FINISHED_FILE).unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def candidate(self) -> Path:
        """Where one model at a time is written that is there only until it is checked and scored."""
        return self.path / CANDIDATE

    def borrow(self, path: Path) -> Path:
        """A second name of a file of this folder, which stays when the first is moved; no byte is copied."""
        lent = self.path / LENT / path.name
        lent.parent.mkdir(exist_ok=True)
        lent.unlink(missing_ok=True)
        lent.hardlink_to(path)
        return lent

    def discard_output(self) -> None:
        """Throws away what was made so far: it was made of wrong bytes. Second names would keep the room."""
        for path in (self.output, partial_folder(self.output), self.path / LENT):
            shutil.rmtree(path, ignore_errors=True)

    def finish(self, *, keep: bool) -> None:
        """The job has ended: the folder goes now, or waits for a retry until age or a full disk ends that."""
        if keep:
            (self.path / FINISHED_FILE).touch()
        else:
            shutil.rmtree(self.path, ignore_errors=True)


def confirm(scratch: Path) -> None:
    """Raises ``DiskUnusable`` where no work folder can be made, however much room there is."""
    folder = jobs_folder(scratch)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "it is read-only, or another user's"
    except OSError as error:
        reason = str(error)
    if reason:
        raise DiskUnusable(f"nothing can be written in {folder}: {reason}")


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written on the disk of ``folder``."""
    return shutil.disk_usage(folder).free


def ensure_room(
    work: WorkFolder,
    needed: int,
    *,
    free: Callable[[Path], int] = free_bytes,
) -> None:
    """Has the disk hold ``needed`` bytes for the folder, counting what is there already. Raises ``DiskFull``
    where it cannot, ``DiskBusy`` where it could but for what other jobs at work may still write.

    Folders of ended jobs, oldest first, make room.
    """
    missing = max(0, needed - bytes_in(work.path)) + RESERVE_BYTES
    with _only_one(work.scratch):
        promised = _promised(work)
        for idle in _idle_folders(work.scratch):
            if free(work.path) >= missing + promised:
                break
            remove_idle(idle)
        available = free(work.path)
        if available < missing:
            raise DiskFull(
                f"the job needs {_gib(missing)} more on the work disk and {_gib(available)} are free; "
                "free some space or point MERGERY_SCRATCH_DIR at a larger disk, then retry the job"
            )
        if available < missing + promised:
            raise DiskBusy(
                f"the job needs {_gib(missing)} more on the work disk; {_gib(available)} are free, of which "
                f"{_gib(promised)} are for jobs at work; tried again later"
            )
        (work.path / ROOM_FILE).write_text(str(needed))


def _promised(work: WorkFolder) -> int:
    """Bytes that jobs at work in other folders may still write."""
    promised = 0
    for room in jobs_folder(work.scratch).glob(f"*/{ROOM_FILE}"):
        if room.parent != work.path and _is_held(room.parent):
            with suppress(FileNotFoundError):  # it may end meanwhile
                promised += max(0, int(room.read_text() or 0) - bytes_in(room.parent))
    return promised


@contextmanager
def _only_one(scratch: Path) -> Iterator[None]:
    """Two jobs that ask for room at once are not both told of the same bytes."""
    with (scratch / "room.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clean(scratch: Path, keep_seconds: float, *, now: Callable[[], float] = time.time) -> list[str]:
    """Removes the folders in which nobody has worked for ``keep_seconds``; returns their root ids."""
    removed = []
    for folder in jobs_folder(scratch).glob("*"):
        try:
            touched = max(entry.stat().st_mtime for entry in (folder, *folder.iterdir()))
        except OSError:  # it has gone meanwhile, or is none of ours
            continue
        if now() - touched > keep_seconds and remove_idle(folder):
            removed.append(folder.name)
    return sorted(removed)


def mark_finished(scratch: Path, ended: Callable[[Collection[str]], Collection[str]]) -> list[str]:
    """Marks the folders of jobs that ``ended`` picks among those whose worker left no mark, as one that was
    killed or whose job was cancelled before it came back: they make room too. Returns their root ids.
    """
    folders = {
        folder.name: folder
        for folder in jobs_folder(scratch).glob("*")
        if not (folder / FINISHED_FILE).exists()
    }
    marked = []
    for root_id in sorted(ended(set(folders))) if folders else ():
        lock = _lock_idle(folders[root_id])
        if lock >= 0:
            (folders[root_id] / FINISHED_FILE).touch()
            os.close(lock)
            marked.append(root_id)
    return marked


def forget_candidates(scratch: Path) -> list[str]:
    """Removes what searches whose workers died were about to score; returns their root ids."""
    removed = []
    for candidate in jobs_folder(scratch).glob(f"*/{CANDIDATE}"):
        lock = _lock_idle(candidate.parent)
        if lock >= 0:
            shutil.rmtree(candidate, ignore_errors=True)
            os.close(lock)
            removed.append(candidate.parent.name)
    return sorted(removed)


def remove_idle(folder: Path) -> bool:
    """Removes a work folder unless somebody holds its lock; says whether it did.

    It loses its name first: the lock goes with the other files, and a retry that came while they are removed
    would work in a folder that vanishes under it.
    """
    lock = _lock_idle(folder)
    if lock < 0:
        return False
    hidden = folder if folder.name.startswith(".") else folder.with_name(f".{folder.name}{GONE}")
    try:
        if hidden != folder:
            shutil.rmtree(hidden, ignore_errors=True)
            folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    finally:
        os.close(lock)
    return True


def _idle_folders(scratch: Path) -> Iterator[Path]:
    marked = []
    for mark in jobs_folder(scratch).glob(f"*/{FINISHED_FILE}"):
        with suppress(FileNotFoundError):  # another worker may remove it meanwhile
            marked.append((mark.stat().st_mtime, mark.parent))
    yield from (folder for _, folder in sorted(marked))


def _try_lock(folder: Path) -> int:
    try:
        lock = os.open(folder / LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return -1
    if not is_linked(lock, folder / LOCK_FILE):
        os.close(lock)
        return -1
    return lock


def _lock_idle(folder: Path) -> int:
    """As ``_try_lock``, for what may be another user's or no work folder at all: that is left alone, and
    keeps nobody from his work.
    """
    try:
        return _try_lock(folder)
    except OSError:
        return -1


def _is_held(folder: Path) -> bool:
    """Whether somebody works in a folder."""
    lock = _lock_idle(folder)
    if lock >= 0:
        os.close(lock)
    return lock < 0


def is_linked(lock: int, path: Path) -> bool:
    """Whether ``path`` still leads to the open file ``lock``."""
    try:
        return os.fstat(lock).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"
