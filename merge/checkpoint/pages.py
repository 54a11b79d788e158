"""Pages of open files in this process's own addresses: what is read more than once need not be copied each
time. They are the page cache's, and no memory of the process.
"""

import ctypes
import mmap
import os
import sys

POPULATE_READ = 22
"""``MADV_POPULATE_READ`` (Linux 5.14): fails, where a later read would, if a file is too short or broken."""
_FAILED = ctypes.c_void_p(-1).value
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
if _LIBC is not None:
    _LIBC.mmap.restype = ctypes.c_void_p
    _LIBC.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    _LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Pages:
    """Bytes of a file, from ``begin`` on, as long as anybody holds this."""

    _start: int | None = None

    def __init__(self, fd: int, begin: int, size: int) -> None:
        """Raises ``OSError`` where the file cannot be mapped."""
        before = begin % mmap.PAGESIZE
        self._size, self._end = before + size, begin + size
        if _LIBC is None or size <= 0:
            raise OSError("nothing is mapped here")
        found = _LIBC.mmap(None, self._size, mmap.PROT_READ, mmap.MAP_SHARED, fd, begin - before)
        if found == _FAILED:
            raise OSError(ctypes.get_errno(), "cannot be mapped")
        self._start = found
        self.address: int = found + before
        """Of the first byte."""
        self._there: set[tuple[int, int]] = set()

    def bring(self, fd: int, at: int, size: int) -> bool:
        """Whether so many bytes from the ``at``-th on can be read: they are there, or are brought now. Of a
        file that became shorter none can: whoever reads what it has lost is killed.
        """
        if os.fstat(fd).st_size < self._end:
            return False
        if (at, size) in self._there:
            return True
        assert _LIBC is not None
        begin = self.address + at
        start = begin - begin % mmap.PAGESIZE
        if _LIBC.madvise(start, begin + size - start, POPULATE_READ):
            return False
        self._there.add((at, size))
        return True

    def __del__(self) -> None:
        if self._start is not None and _LIBC is not None:
            _LIBC.munmap(self._start, self._size)
