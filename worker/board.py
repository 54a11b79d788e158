"""The board between a worker's parent process and its children: small files, so that it outlives either side.

A child writes which job it runs and when it was last alive; the parent asks all children to stop. Times are
CLOCK_MONOTONIC, which every process of one machine shares.
"""

import json
import os
import secrets
import shutil
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.tally import Fact

BOARD_VARIABLE = "MERGERY_WORKER_BOARD"
STALE_BOARD_SECONDS = 24 * 3600.0
HEALTH_FILE = "alive"
HEALTH_SECONDS = 45.0


@dataclass(frozen=True, slots=True)
class Note:
    """What one child is doing."""

    pid: int
    job_id: str
    attempt: int
    owner: str
    alive_at: float
    stop_at: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """Notes of the children of one worker, in a folder of their own."""

    folder: Path

    @classmethod
    def create(cls, scratch: Path) -> "Board":
        """A new board under ``scratch``; boards that nobody has used for a day are removed."""
        boards = scratch / "workers"
        boards.mkdir(parents=True, exist_ok=True)
        for old in boards.iterdir():
            with suppress(FileNotFoundError):  # another worker that starts may remove it first
                if old.is_dir() and time.time() - old.stat().st_mtime > STALE_BOARD_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        folder = boards / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        return cls(folder)

    def keep(self) -> None:
        """Shows that the worker is there, however long its children have had nothing to do."""
        with suppress(FileNotFoundError):
            os.utime(self.folder)

    def write(self, note: Note) -> None:
        """Puts up the note of a child, whole or not at all."""
        draft = self.folder / f"{note.pid}.{threading.get_ident()}.draft"
        draft.write_text(json.dumps(asdict(note)))
        draft.replace(self.folder / f"{note.pid}.json")

    def clear(self, pid: int) -> None:
        """Takes the note of a child down."""
        (self.folder / f"{pid}.json").unlink(missing_ok=True)

    def notes(self) -> list[Note]:
        """Every note that is up."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(Note(**json.loads(path.read_text())))
            except FileNotFoundError:
                continue
        return found

    def tell(self, fact: Fact) -> None:
        """Leaves a fact of this process for the parent to count, if the board is still up and the disk has
        room.
        """
        with suppress(OSError), (self.folder / f"{os.getpid()}.facts").open("a") as file:
            file.write(json.dumps(asdict(fact)) + "\n")

    def told(self) -> list[Fact]:
        """Every fact that was left since the last call; each is told once.

        A file is first put aside and read in the next call, so that a line being written is not lost.
        """
        found = []
        for path in sorted(self.folder.glob("*.counted")):
            lines = path.read_text().splitlines()
            path.unlink()
            for line in lines:
                with suppress(ValueError):  # a full disk took only a part of it
                    each = json.loads(line)
                    found.append(Fact(each["name"], tuple(each["labels"]), each["value"]))
        for path in sorted(self.folder.glob("*.facts")):
            path.replace(path.with_suffix(".counted"))
        return found

    def ask_to_stop(self) -> None:
        """Asks every child to hand its job back."""
        (self.folder / "stop").touch()

    def is_stopping(self) -> bool:
        """Whether the parent has asked the children to stop."""
        return (self.folder / "stop").exists()

    def declare_unfit(self) -> None:
        """A child says that no job can be run here."""
        (self.folder / "unfit").touch()

    def is_unfit(self) -> bool:
        """Whether a child has said so."""
        return (self.folder / "unfit").exists()

    def remove(self) -> None:
        """Removes the board with all its notes."""
        shutil.rmtree(self.folder, ignore_errors=True)


def health_path(scratch: Path) -> Path:
    """The file which a worker on this host touches while its event loop runs and reaches the broker."""
    return scratch / "workers" / f"{socket.gethostname()}.{HEALTH_FILE}"


def is_healthy(scratch: Path) -> bool:
    """Whether a worker on this host was alive a moment ago."""
    try:
        return time.time() - health_path(scratch).stat().st_mtime < HEALTH_SECONDS
    except FileNotFoundError:
        return False
