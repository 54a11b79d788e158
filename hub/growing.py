"""One file as it grows in its place, with a small file beside it, the note, that says which bytes are there.

Only noted bytes are handed out. So whatever was made of a byte, even by a process that was killed since, was
made of the byte that lies there now: noted bytes are never fetched again unless all of them are forgotten.
Should a power cut take noted bytes away, the hash of a whole file tells; those of a file in ranges are on the
disk before they are noted.
"""

import hashlib
import json
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from hub.download import Target, pieces_of
from hub.errors import HashMismatch, Interrupted, Unavailable
from hub.snapshot import RepoFile, Snapshot

NOTE_BYTES = 4 << 20
NOTE_SECONDS = 0.5

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Parcel:
    """One file to be brought into ``folder``: these bytes of it, or all."""

    snapshot: Snapshot
    folder: Path
    name: str
    spans: Spans | None = None

    @property
    def file(self) -> RepoFile:
        """The file as its commit lists it."""
        return self.snapshot.file(self.name)

    @property
    def size(self) -> int:
        """Bytes to be brought."""
        return self.file.size if self.spans is None else sum(end - begin for begin, end in self.spans)


class Growing:
    """A parcel's file as it grows in its place; a small file beside it says which bytes have arrived."""

    def __init__(self, parcel: Parcel) -> None:
        self.parcel, self.file = parcel, parcel.file
        self.label = f"{parcel.name} of {parcel.snapshot.label}"
        self.target = Target(parcel.folder, parcel.file, self.label)
        self.wanted: Spans = ((0, parcel.file.size),) if parcel.spans is None else parcel.spans
        self.have: list[tuple[int, int]] = []
        self.noted: list[tuple[int, int]] = []
        self.used = self.done = self.wrong = False
        self.arrived = self.counted = 0
        self._unnoted = 0
        self._noted_at = time.monotonic()
        self._hash = _hasher(parcel.file)
        self._hashed = 0

    @property
    def missing(self) -> int:
        """Wanted bytes that are not."""
        return self.parcel.size - self.arrived

    def open(self) -> None:
        """Finds out what is there from an earlier time, and gives the file its size."""
        self.target.prepare()
        if self.target.is_done():
            self.have, self.arrived, self.done = [(0, self.file.size)], self.parcel.size, True
            return
        self.have = self._read_note()
        if not self.have or not self.target.path.is_file():
            self.have = []
            self.target.path.unlink(missing_ok=True)
        with self.target.path.open("ab") as file:
            os.truncate(file.fileno(), self.file.size)
        self.noted = self.have
        self.used = bool(self.have)
        self.arrived = sum(_within(self.have, begin, end) for begin, end in self.wanted)
        self.done = self.parcel.spans is not None and not self.missing

    def has(self, begin: int, end: int) -> bool:
        """Whether these bytes are there for good; raises when they were never asked for."""
        if self.done or _within(self.noted, begin, end) == end - begin:
            return True
        if _within(self.wanted, begin, end) < end - begin:
            raise AssertionError(f"bytes {begin} to {end} of {self.label} were not ordered")
        return False

    def next_missing(self) -> tuple[int, int] | None:
        """The first wanted bytes that are not there."""
        for begin, end in self.wanted:
            for first, last in self.have:
                if first <= begin < last:
                    begin = last
            if begin < end:
                later = [first for first, _ in self.have if first > begin]
                return begin, min([end, *later])
        return None

    def write(self, at: int, piece: bytes) -> None:
        """Puts bytes into their place."""
        with self.target.path.open("r+b") as file:
            os.pwrite(file.fileno(), piece, at)
            if at == self._hashed:
                self._hash.update(piece)
                self._hashed += len(piece)
            had = _within(self.have, at, at + len(piece))
            self.arrived += _within(self.wanted, at, at + len(piece)) - (had and self._wanted_had(at, piece))
            self.have = _joined([*self.have, (at, at + len(piece))])
        self._unnoted += len(piece)
        if self._unnoted >= NOTE_BYTES or time.monotonic() - self._noted_at >= NOTE_SECONDS:
            self.note()

    def _wanted_had(self, at: int, piece: bytes) -> int:
        """Wanted bytes of a piece that were there before it."""
        parts = [(max(begin, at), min(end, at + len(piece))) for begin, end in self.wanted]
        return sum(_within(self.have, begin, end) for begin, end in parts if begin < end)

    def note(self) -> None:
        """Notes what has arrived."""
        have = self.have
        if self.parcel.spans is not None:
            with self.target.path.open("r+b") as file:
                os.fdatasync(file.fileno())
        draft = self._note_path.with_suffix(".draft")
        draft.write_text(json.dumps(have), encoding="ascii")
        draft.replace(self._note_path)
        self.noted, self._unnoted, self._noted_at = have, 0, time.monotonic()

    def check_answer(self, response: httpx2.Response) -> None:
        """The Hub states the hash of the file with its answer; it must be the commit's. What comes for
        ranges, which cannot be hashed, must be said to be a range, or all of the file.
        """
        headers = [each.headers for each in (*response.history, response)]
        stated = {told for each in headers if (told := each.get("x-linked-etag", "").strip('"'))}
        if self.file.sha256 and stated - {self.file.sha256}:
            raise HashMismatch(f"{self.label}: the Hub offers other content than the commit lists")
        said = stated or response.headers.get("content-length") == str(self.file.size)
        if self.parcel.spans is not None and response.status_code != 206 and not said:
            raise Unavailable(f"the Hub sent neither a range of {self.label} nor all of it")

    def is_right(self, stop: Callable[[], bool]) -> bool:
        """Whether the whole file has the content that the commit lists."""
        if self._hashed != self.file.size:
            self._hash, self._hashed = _hasher(self.file), 0
            for piece in pieces_of(self.target.path):
                if stop():
                    raise Interrupted(f"stopped while {self.label} was being checked")
                self._hash.update(piece)
        return bool(self._hash.hexdigest() == (self.file.sha256 or self.file.git_oid))

    def forget(self) -> None:
        """Nothing of it is there. The file keeps its size, since a merge may be looking at it."""
        self.have, self.noted, self._hash, self._hashed = [], [], _hasher(self.file), 0
        self.arrived = self.counted = 0
        self._note_path.unlink(missing_ok=True)

    def settle(self) -> None:
        """A whole file that was checked need not be looked at again."""
        if self.parcel.spans is None:
            self.target.mark()
            self._note_path.unlink(missing_ok=True)

    @property
    def _note_path(self) -> Path:
        return self.target.part.with_suffix(".arrived")

    def _read_note(self) -> list[tuple[int, int]]:
        try:
            found: Any = json.loads(self._note_path.read_bytes())
            return _joined([(int(begin), int(end)) for begin, end in found])
        except (OSError, ValueError, TypeError):
            return []


def _within(spans: Sequence[tuple[int, int]], begin: int, end: int) -> int:
    """How many bytes from ``begin`` to ``end`` the sorted spans hold."""
    found, place = 0, max(0, bisect_right(spans, (begin, end)) - 1)
    while place < len(spans) and spans[place][0] < end:
        found += max(0, min(end, spans[place][1]) - max(begin, spans[place][0]))
        place += 1
    return found


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    made: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if made and begin <= made[-1][1]:
            made[-1] = (made[-1][0], max(made[-1][1], end))
        else:
            made.append((begin, end))
    return made


def _hasher(file: RepoFile) -> Any:
    if file.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
