"""What a run has finished, one line a fact, so that a later run goes on from there."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge.errors import OutputBusy

FILE = ".mergery-journal"
_SAMPLES = 16
_SAMPLE_BYTES = 1 << 14
_READ_BYTES = 1 << 20
_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class Finished:
    """A shard that is done; ``released`` once its file was uploaded and deleted, ``measured`` is what the
    survey found in its tensors, ``facts`` what the maker of the result wants to know of them in the end.
    """

    file: str
    size: int
    sha256: str
    released: bool = False
    measured: Mapping[str, list[float]] = field(default_factory=dict)
    facts: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass
class Journal:
    """The facts of one unfinished output folder. ``shared`` are measured global statistics."""

    folder: Path
    shards: dict[str, Finished] = field(default_factory=dict)
    shared: list[Any] | None = None

    def add_shard(self, done: Finished) -> None:
        """Records a finished (or released) shard, durably."""
        self.shards[done.file] = done
        _append(self.folder, {"shard": done.__dict__})

    def add_shared(self, values: list[Any]) -> None:
        """Records the global statistics, durably. ``values`` is plain JSON."""
        self.shared = values
        _append(self.folder, {"shared": values})


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps other runs out of an unfinished output folder, until the process ends at the latest. Raises
    ``OutputBusy`` where another one is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("ab") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputBusy(
                f"Another merge is at work in {folder}; wait for its end, or choose another folder."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def open_journal(
    folder: Path,
    plan_digest: str,
    inputs: Mapping[str, Any],
    written: Mapping[str, int],
    survey: str = "none",
) -> Journal:
    """The journal of ``folder``, which is emptied first where it belongs to another plan or to other inputs,
    or to inputs that were ``written`` to (when each last was) since.

    Finished shards whose file is gone, or has another sha256 or none, are forgotten; so are those that were
    measured to another extent than the ``survey`` asks for, if it asks for any.
    """
    head = {"plan": plan_digest, "inputs": dict(inputs), "written": dict(written)}
    lines = _lines(folder / FILE)
    if not lines or lines[0] != head:
        _empty(folder)
        _append(folder, head)
        lines = [head]
    found = Journal(folder)
    extent, extents = None, dict[str, str | None]()
    for line in lines[1:]:
        extent = line.get("survey", extent)
        if "shard" in line:
            done = Finished(**line["shard"])
            found.shards[done.file], extents[done.file] = done, extent
        found.shared = line.get("shared", found.shared)
    fit = {file for file, its in extents.items() if survey in ("none", its)}
    found.shards = {
        file: done
        for file, done in found.shards.items()
        if done.released or (file in fit and _whole(folder, done))
    }
    _append(folder, {"survey": survey})
    return found


def partial_folder(out: Path) -> Path:
    """Where an output grows before it is renamed."""
    return out.with_name(out.name + ".partial")


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def copy_file(source: Path, folder: Path, file: str, check: Callable[[], None]) -> Finished:
    """Copies a file into ``folder`` under the name ``file``, durably; ``check`` may stop it."""
    digest = hashlib.sha256()
    with source.open("rb") as read, (folder / file).open("wb") as made:
        while piece := read.read(_COPY_BYTES):
            check()
            digest.update(piece)
            made.write(piece)
        made.flush()
        os.fsync(made.fileno())
    return Finished(file, (folder / file).stat().st_size, digest.hexdigest())


def sample_of(path: Path) -> str:
    """sha256 (hex) of the size and of 16 evenly spread samples of a file: tells changed weights without
    reading all.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _empty(folder: Path) -> None:
    """Leaves nothing but the journal, empty: it is the one that the run has claimed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(b"")
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
        elif each.name != FILE:
            each.unlink(missing_ok=True)


def _whole(folder: Path, done: Finished) -> bool:
    path = folder / done.file
    there = bool(done.sha256) and path.is_file() and path.stat().st_size == done.size
    return there and sha256_of(path) == done.sha256


def _append(folder: Path, fact: Mapping[str, Any]) -> None:
    """Adds a line of its own, also where a crash has cut off the last one."""
    with (folder / FILE).open("a+b") as file:
        before = b""
        if file.tell():
            file.seek(-1, os.SEEK_END)
            before = b"" if file.read() == b"\n" else b"\n"
        file.write(before + json.dumps(fact).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path) -> list[dict[str, Any]]:
    """Every complete line; what a crash cut off is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            fact = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            fact = None
        if isinstance(fact, dict):
            found.append(fact)
    return found
