"""The work disk as every process of its machine sees it: where work folders are, and what they take."""

import os
import shutil
from contextlib import suppress
from pathlib import Path


def jobs_folder(scratch: Path) -> Path:
    """Where the work folders are."""
    return scratch / "jobs"


def bytes_in(folder: Path) -> int:
    """Bytes that the files below ``folder`` take on the disk; one of several names takes them once."""
    sizes: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                status = (Path(parent) / name).lstat()
                sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


def room(scratch: Path) -> int | None:
    """Bytes that a job may come to have when its turn comes: those that are free, and those of work folders,
    which go when other jobs are over or want the room. Nothing where the work disk is another machine's.
    """
    return shutil.disk_usage(scratch).free + bytes_in(jobs_folder(scratch)) if scratch.is_dir() else None
