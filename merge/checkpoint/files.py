"""The open files of a folder, read at positions by any number of threads; what follows is asked for ahead of
use.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from merge.checkpoint.header import DTYPE_BITS, TensorInfo
from merge.checkpoint.pages import Pages
from merge.checkpoint.places import safe_path
from merge.file_errors import FileSizeMismatch, FileUnreadable

MAX_OPEN_FILES = 64
AHEAD_BYTES = 8 << 20
Wait = Callable[[str, int, int], None]
"""Given a file and a range of its bytes, returns when they are there."""


@dataclass
class _OpenFile:
    fd: int
    users: int = 0
    hinted: int = 0


class OpenFiles:
    """The open files of a folder: at most ``MAX_OPEN_FILES`` besides those that are being read, the least
    recently used closed first.
    """

    def __init__(self, folder: Path, label: str, wait: Wait | None = None) -> None:
        self._folder = folder
        self._label = label
        self._wait = wait
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()

    def read(self, name: str, offset: int, buffer: memoryview, *, ahead: bool = True) -> None:
        """Fills the buffer from that byte on. Raises ``FileUnreadable`` or ``FileSizeMismatch``."""
        file = self._take(name, offset, offset + len(buffer))
        try:
            if ahead:
                self._hint(file, offset, len(buffer))
            self._fill(file.fd, name, offset, buffer)
        finally:
            with self._lock:
                file.users -= 1

    def _fill(self, fd: int, name: str, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise FileUnreadable(f"{name} of {self._label} cannot be read: {error.strerror}.") from error
            if got == 0:
                raise FileSizeMismatch(
                    f"{name} of {self._label} ends at byte {os.fstat(fd).st_size}: it was cut short while it "
                    "was read; fetch it anew and run again."
                )
            done += got

    def read_rows(self, name: str, begin: int, size: int, rows: Sequence[int], buffer: memoryview) -> None:
        """Rows of ``size`` bytes that are counted from byte ``begin``, one after another into the buffer."""
        if not rows:
            return
        with self._use(name, begin + min(rows) * size, begin + (max(rows) + 1) * size) as file:
            for first, last in runs_of(rows):
                part = buffer[first * size : last * size]
                self._fill(file.fd, name, begin + rows[first] * size, part)

    def borrow(self, name: str, offset: int, size: int) -> int:
        """The descriptor, until ``give_back``, of a file of which these bytes are about to be read."""
        file = self._take(name, offset, offset + size)
        self._hint(file, offset, size)
        return file.fd

    def give_back(self, name: str) -> None:
        """Lets a file be closed again."""
        with self._lock:
            self._open[name].users -= 1

    def read_pieces(self, name: str, starts: Sequence[int], size: int, buffer: memoryview) -> None:
        """Pieces of ``size`` bytes that begin at these bytes, in rising order, one after another into the
        buffer.
        """
        with self._use(name, starts[0], starts[-1] + size) as file:
            for at, start in enumerate(starts):
                self._fill(file.fd, name, start, buffer[at * size : (at + 1) * size])

    def close(self) -> None:
        """Closes what nobody reads; reading afterwards opens it again."""
        with self._lock:
            for file in self._open.values():
                if file.users == 0:
                    os.close(file.fd)
            self._open = OrderedDict((name, file) for name, file in self._open.items() if file.users)

    def _hint(self, file: _OpenFile, offset: int, size: int) -> None:
        """Keeps the next ``AHEAD_BYTES`` on their way while a file is read forwards."""
        end = offset + size
        ahead = file.hinted - end
        if not AHEAD_BYTES // 2 <= ahead <= 4 * AHEAD_BYTES:
            begin = file.hinted if 0 <= ahead < AHEAD_BYTES // 2 else end
            file.hinted = begin + AHEAD_BYTES
            if not (_at_hand(file.fd, begin) and _at_hand(file.fd, begin + AHEAD_BYTES - 1)):
                _advise(file.fd, begin, AHEAD_BYTES, "POSIX_FADV_WILLNEED")

    @contextmanager
    def _use(self, name: str, begin: int, end: int) -> Iterator[_OpenFile]:
        file = self._take(name, begin, end)
        try:
            yield file
        finally:
            with self._lock:
                file.users -= 1

    def _take(self, name: str, begin: int, end: int) -> _OpenFile:
        """The open file, once these bytes are there: before that another one may be in its place."""
        if self._wait is not None:
            self._wait(name, begin, end)
        with self._lock:
            file = self._open.get(name)
            if file is None:
                file = self._open[name] = _OpenFile(self._open_fd(name))
            self._open.move_to_end(name)
            file.users += 1
            if len(self._open) > MAX_OPEN_FILES:
                self._shrink()
            return file

    def _open_fd(self, name: str) -> int:
        try:
            fd = os.open(safe_path(self._folder, name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise FileUnreadable(f"{name} of {self._label} cannot be opened: {error.strerror}.") from error
        _advise(fd, 0, 0, "POSIX_FADV_SEQUENTIAL")
        return fd

    def _shrink(self) -> None:
        for name in [name for name, file in self._open.items() if file.users == 0]:
            if len(self._open) <= MAX_OPEN_FILES:
                return
            os.close(self._open.pop(name).fd)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Entries that lie one after another in a file, ``width`` bytes each, the first at byte ``begin``."""

    files: OpenFiles
    file: str
    begin: int
    width: int
    entries: int
    dtype: str

    @classmethod
    def of(cls, files: OpenFiles, info: TensorInfo) -> "Stretch":
        """Those of a tensor that is stored as it is."""
        width = DTYPE_BITS[info.dtype] // 8
        return cls(files, info.file, info.begin, width, info.numel, info.dtype)

    def borrow(self, first: int, count: int) -> tuple[int, int]:
        """The open file, until ``give_back``, and the byte in it at which entry ``first`` begins; what comes
        after these entries is asked for ahead of use.
        """
        if first < 0 or first + count > self.entries:
            raise ValueError(f"there are {self.entries} entries, not {first + count}")
        begin = self.begin + first * self.width
        return self.files.borrow(self.file, begin, count * self.width), begin

    def give_back(self) -> None:
        """Ends a ``borrow``."""
        self.files.give_back(self.file)

    def pages(self, fd: int) -> Pages | None:
        """All entries of the borrowed file in memory, where that can be and they lie as numbers should."""
        if self.begin % self.width:
            return None
        try:
            return Pages(fd, self.begin, self.entries * self.width)
        except OSError:
            return None


def runs_of(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Places (first, one past the last) of rows that follow each other."""
    first = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at] != rows[at - 1] + 1:
            yield first, at
            first = at


def _at_hand(fd: int, offset: int) -> bool:
    """Whether a byte is in the page cache (or beyond the end): asking for what is there costs as much as
    reading it. Where that cannot be told, it is not.
    """
    try:
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except (OSError, AttributeError):
        return False
    return True


def _advise(fd: int, offset: int, size: int, advice: str) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, size, getattr(os, advice))
