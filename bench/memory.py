"""Memory as on a machine that has been up for long: in use, down to the last few hundred megabytes.

The hypervisor of a virtual machine may take back what has been free for a second or two. The first touch of
such a page then costs more than everything else that is done with it, and the same merge takes 1.9 or 2.9 s,
by chance. Where the page cache fills the memory instead, what is written takes the place of clean pages that
were not used for long, and those are there. Filling is quickest right after memory became free.
"""

import random
from pathlib import Path

MOST_BYTES = 64 << 30
"""Machines with more memory are left as they are: to fill them would take minutes."""
SPARSE_BYTES = 1 << 40
"""So many that a place in it is rarely in memory already."""
STEP, ROUND = 4 << 20, 256 << 20


class Filler:
    """Fills what is free with pages of a sparse file in ``folder``, which takes no room on the disk. It stays
    there, so that the next process finds memory filled.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "sparse"
        self._at = random.randrange(SPARSE_BYTES // STEP) * STEP
        with self._path.open("ab") as file:
            file.truncate(SPARSE_BYTES)

    def fill(self) -> None:
        """Reads on in the file until that leaves no less free than before, as the kernel then gives up older
        pages. Nothing where memory is large or not told of.
        """
        if not 0 < _told("MemTotal") <= MOST_BYTES:
            return
        free = _told("MemFree")
        before = free + ROUND
        while before - free > ROUND / 2:
            self._read()
            before, free = free, _told("MemFree")

    def _read(self) -> None:
        block = bytearray(STEP)
        with self._path.open("rb", buffering=0) as file:
            for _ in range(ROUND // STEP):
                file.seek(self._at)
                file.readinto(block)
                self._at = (self._at + STEP) % SPARSE_BYTES


def _told(name: str) -> int:
    """Bytes by the name that Linux gives them, 0 elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), 0)
