"""One output shard, written in place: space reserved, blocks at their offsets, written back early.

Blocks may come in any order and from several threads. The sha256 follows the blocks as far as they are
contiguous, beside those of files that are written at the same time (``merge.checkpoint.digests``).
"""

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from torch import Tensor

from merge.checkpoint.digests import Digests
from merge.checkpoint.dtype import as_bytes, safetensors_name
from merge.checkpoint.layout import ShardLayout
from merge.errors import DiskFull, ShardIncomplete
from merge.file_errors import FileUnreadable

WRITEBACK_BYTES = 8 << 20
_SYNC_FILE_RANGE_WRITE = 2


@dataclass(frozen=True)
class Written:
    """A finished file: its name, size in bytes and sha256 (hex; empty where none was wanted)."""

    file: str
    size: int
    sha256: str


class ShardWriter:
    """Writes ``layout`` to ``path`` (replacing it); ``finish`` makes it durable and gives its digest, unless
    ``digest`` is false. ``beside`` are the digests of files that are written at the same time.

    Use it as a context manager: leaving by an exception closes the file and keeps what was written.
    """

    def __init__(
        self, path: Path, layout: ShardLayout, digest: bool = True, beside: Digests | None = None
    ) -> None:
        self._path = path
        self._layout = layout
        self._lock = threading.Lock()
        self._contiguous = 0
        self._later: dict[int, int] = {}
        self._started_writeback = 0
        self._missing = {name: info.numel for name, info in layout.entries.items() if info.numel}
        self._fd = self._create()
        self._digest = (beside or Digests()).file(path, self._fd, layout.size) if digest else None
        self._put(layout.header_bytes, 0)
        self._take(memoryview(layout.header_bytes), 0, None)

    def place_of(self, name: str, first: int) -> tuple[int, int]:
        """The open file, and the byte in it where entry ``first`` of a tensor belongs."""
        info = self._layout.entries[name]
        return self._fd, info.begin + first * (info.nbytes // info.numel)

    def write_at(
        self,
        name: str,
        first: int,
        block: Tensor,
        done: Callable[[], None] | None = None,
        *,
        there: bool = False,
    ) -> None:
        """Writes entries ``first`` onwards (flat, row-major) of a tensor; each entry is written once. What is
        already ``there``, at ``place_of``, is only taken in.

        ``block`` is contiguous, on the CPU and of the dtype of the layout; with ``done`` it stays as it is
        until that is called, by any thread. Raises ``DiskFull`` or ``FileUnreadable``.
        """
        info = self._layout.entries[name]
        count = block.numel()
        if safetensors_name(block.dtype) != info.dtype:
            raise ValueError(f"{name} is laid out as {info.dtype}, but the block is {block.dtype}")
        if first < 0 or first + count > info.numel:
            raise ValueError(f"{name} has {info.numel} entries, not {first + count}")
        if count == 0:
            return
        offset, content = info.begin + first * block.element_size(), as_bytes(block)
        if not there:
            self._put(content, offset)
        self._take(content, offset, done)
        with self._lock:
            left = self._missing.get(name, 0) - count
            if left < 0:
                raise ValueError(f"entries of {name} were written twice")
            self._missing[name] = left
            if left == 0:
                del self._missing[name]

    def finish(self) -> Written:
        """Flushes, closes, gives size and sha256. Raises ``ShardIncomplete`` if entries are missing."""
        if self._missing:
            name = next(iter(self._missing))
            raise ShardIncomplete(f"{self._layout.file} lacks {self._missing[name]} entries of {name}.")
        digest = "" if self._digest is None else self._digest.finish()
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._failure(error) from error
        self.close()
        return Written(self._layout.file, self._layout.size, digest)

    def close(self) -> None:
        """Closes the file without promising anything about it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _create(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._path, flags, 0o644)
        except OSError as error:
            raise self._failure(error) from error
        try:
            reserve(fd, self._layout.size)
        except OSError as error:
            os.ftruncate(fd, 0)
            os.close(fd)
            raise self._failure(error) from error
        return fd

    def _put(self, data: bytes | memoryview, offset: int) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], offset + written)
        except OSError as error:
            raise self._failure(error) from error

    def _take(self, data: memoryview, offset: int, done: Callable[[], None] | None) -> None:
        """Takes in that these bytes are in the file."""
        self._note(offset, len(data))
        if self._digest is not None:
            self._digest.note(offset, data, done)
        elif done is not None:
            done()

    def _note(self, offset: int, size: int) -> None:
        """Moves the contiguous edge, and starts writing back behind it."""
        with self._lock:
            self._later[offset] = offset + size
            while self._contiguous in self._later:
                self._contiguous = self._later.pop(self._contiguous)
            edge, begin = self._contiguous, self._started_writeback
            if edge - begin >= WRITEBACK_BYTES:
                self._started_writeback = edge
        if edge - begin >= WRITEBACK_BYTES:
            start_writeback(self._fd, begin, edge - begin)

    def _failure(self, error: OSError) -> DiskFull | FileUnreadable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return DiskFull(f"There is no room for the {self._layout.size} bytes of {self._path.name}.")
        return FileUnreadable(f"{self._path} cannot be written: {error.strerror}.")


def reserve(fd: int, size: int) -> None:
    """Gives an open file ``size`` bytes of the disk; raises ``OSError`` where it has none left."""
    disk = os.fstatvfs(fd)
    if size > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        os.posix_fallocate(fd, 0, size)
    except AttributeError:
        os.ftruncate(fd, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(fd, size)


@lru_cache(maxsize=1)
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The system call where there is one (Linux), else ``None``."""
    try:
        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    call.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = call
    return found


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Asks the kernel to begin writing these bytes to the disk, without waiting; nothing where it cannot."""
    call = _sync_file_range()
    if call is not None:
        call(fd, offset, size, _SYNC_FILE_RANGE_WRITE)
