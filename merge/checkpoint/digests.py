"""sha256 of files while they are written: pieces come in any order and from several threads.

One chain of sha256 leaves most of a processor idle, so where an engine can, several files are hashed side by
side; and from the memory that was written, while it is in the cache, where that is lent.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from merge.file_errors import FileUnreadable

READ_BYTES = 1 << 18
MOST_LENT = 4
"""Pieces of a file that are kept in lent memory; more are read again."""
BEHIND_BYTES = 8 << 20
"""A file of which so much could be hashed does not wait for the others."""


class Engine(Protocol):
    """Hashes; ``lanes`` is how many files it takes together in less time than one after another."""

    lanes: int

    def start(self) -> Any:
        """The state before the first byte."""

    def update(self, states: Sequence[Any], pieces: Sequence[memoryview]) -> None:
        """Adds a piece to each of at most ``lanes`` states."""

    def digest(self, state: Any) -> str:
        """The sha256 in hex; the state is used up."""


class Plain:
    """The standard library."""

    lanes = 1

    def start(self) -> Any:
        """A hashlib object."""
        return hashlib.sha256()

    def update(self, states: Sequence[Any], pieces: Sequence[memoryview]) -> None:
        """One after another."""
        for state, piece in zip(states, pieces, strict=True):
            state.update(piece)

    def digest(self, state: Any) -> str:
        """The sha256 in hex."""
        return str(state.hexdigest())


def _nothing() -> None:
    """Nobody is to be told."""


@dataclass
class _Piece:
    """Bytes up to ``end``: in memory that is ``lent`` until ``done`` is called, else in the file."""

    end: int
    lent: memoryview | None
    done: Callable[[], None]


class FileDigest:
    """The sha256 of one file of ``size`` bytes, which can be read at ``fd``."""

    def __init__(self, group: "Digests", path: Path, fd: int, size: int, state: Any) -> None:
        self._group = group
        self._path, self._fd = path, fd
        self._pieces: dict[int, _Piece] = {}
        self._room: memoryview | None = None
        self._noted = self.at = 0
        self.size, self.state = size, state

    def note(self, offset: int, data: memoryview, done: Callable[[], None] | None = None) -> None:
        """Takes in that these bytes were written. With ``done`` they stay as they are until that is called,
        which may be in this call or on another thread.
        """
        self._group.take(self, offset, data, done)

    def finish(self) -> str:
        """The digest, when all bytes were noted."""
        return self._group.finish(self)

    @property
    def left(self) -> bool:
        """Whether there are bytes to come."""
        return self.at < self.size

    @property
    def ready(self) -> bool:
        """Whether the next bytes are there."""
        return self.at in self._pieces

    @property
    def waiting(self) -> int:
        """Bytes up to the last that was noted."""
        return self._noted - self.at

    @property
    def behind(self) -> bool:
        """Whether much is there."""
        return self.waiting >= BEHIND_BYTES

    def add(self, offset: int, piece: _Piece, *, keep: bool) -> bool:
        """Whether the memory of a piece is wanted, given that it may be kept."""
        keep = keep and sum(each.lent is not None for each in self._pieces.values()) < MOST_LENT
        self._pieces[offset] = piece
        self._noted = max(self._noted, piece.end)
        return keep

    def front(self) -> memoryview:
        """The next bytes: what is lent of them, else some from the file."""
        piece = self._pieces[self.at]
        if piece.lent is not None:
            return piece.lent
        if self._room is None:
            self._room = memoryview(bytearray(min(READ_BYTES, self.size)))
        end = piece.end
        while (after := self._pieces.get(end)) is not None and end - self.at < READ_BYTES:
            end = after.end
        got = os.preadv(self._fd, [self._room[: end - self.at]], self.at)
        if got == 0:
            raise FileUnreadable(f"{self._path} became shorter while it was written.")
        return self._room[:got]

    def advance(self, size: int) -> list[Callable[[], None]]:
        """Forgets as many bytes; gives whom to tell."""
        told = []
        while size:
            piece = self._pieces.pop(self.at)
            step = min(size, piece.end - self.at)
            self.at, size = self.at + step, size - step
            if self.at < piece.end:
                piece.lent = None if piece.lent is None else piece.lent[step:]
                self._pieces[self.at] = piece
            else:
                told.append(piece.done)
        return told


class Digests:
    """Files that are written at the same time."""

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine: Engine = engine or Plain()
        self._files: list[FileDigest] = []
        self._lock = threading.Lock()
        self._hashing = threading.Lock()

    def file(self, path: Path, fd: int, size: int) -> FileDigest:
        """One more file."""
        found = FileDigest(self, path, fd, size, self._engine.start())
        with self._lock:
            self._files.append(found)
        return found

    def take(self, file: FileDigest, offset: int, data: memoryview, done: Callable[[], None] | None) -> None:
        """Notes a piece of a file, and hashes what is there unless that is little or another thread does."""
        piece = _Piece(offset + len(data), None, _nothing)
        much = len(data) >= READ_BYTES or file.waiting >= READ_BYTES
        mine = much and self._hashing.acquire(blocking=False)
        kept = False
        try:
            with self._lock:
                kept = file.add(offset, piece, keep=done is not None)
                if kept or mine:
                    piece.lent = data
                if kept and done is not None:
                    piece.done = done
            if mine:
                self._hash(everything=False)
        finally:
            if not kept:
                piece.lent = None
            if mine:
                self._hashing.release()
        if done is not None and not kept:
            done()

    def finish(self, file: FileDigest) -> str:
        """Hashes what is left of a file, beside the others."""
        with self._hashing:
            while file.left:
                assert file.ready  # the writer has seen that all entries are there
                self._hash(everything=True)
            with self._lock:
                self._files.remove(file)
        return self._engine.digest(file.state)

    def _hash(self, *, everything: bool) -> None:
        """As long as there is enough for all lanes, or anything."""
        while True:
            with self._lock:
                left = [file for file in self._files if file.left]
                ready = [file for file in left if file.ready]
                files = sorted(ready, key=lambda file: file.at)[: self._engine.lanes]
            enough = everything or len(files) == min(len(left), self._engine.lanes)
            if not files or not (enough or any(file.behind for file in files)):
                return
            pieces = [file.front() for file in files]
            least = min(map(len, pieces))
            pieces = [piece[:least] for piece in pieces]
            self._engine.update([file.state for file in files], pieces)
            with self._lock:
                told = [done for f, p in zip(files, pieces, strict=True) for done in f.advance(len(p))]
            for done in told:
                done()
