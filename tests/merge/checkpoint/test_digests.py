"""The sha256 of files that are written at the same time, whatever comes first and whoever lends memory."""

import hashlib
import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from merge.checkpoint import digests
from merge.checkpoint.digests import Digests, Engine, FileDigest, Plain
from merge.file_errors import FileUnreadable
from merge.running.fused.compiler import Compiler
from merge.running.fused.lanes import engine

SIZES = (1_000_003, 0, 700_000, 65, 1_300_001)


class Together(Plain):
    """Takes several at a time, and notes how many."""

    lanes = 3

    def __init__(self) -> None:
        self.seen: list[int] = []

    def update(self, states: Sequence[Any], pieces: Sequence[memoryview]) -> None:
        assert 0 < len(states) <= self.lanes
        self.seen.append(len(states))
        super().update(states, pieces)


ENGINES: dict[str, Callable[[], Engine]] = {
    "plain": Plain,
    "together": Together,
    "built": lambda: engine(Compiler()),
}


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[Path, bytearray]]:
    source = random.Random(0)
    return [(tmp_path / str(place), bytearray(source.randbytes(size))) for place, size in enumerate(SIZES)]


def opened(group: Digests, files: Sequence[tuple[Path, bytearray]]) -> list[FileDigest]:
    found = []
    for path, content in files:
        path.write_bytes(content)
        found.append(group.file(path, os.open(path, os.O_RDONLY), len(content)))
    return found


def pieces(files: Sequence[tuple[Path, bytearray]], size: int) -> list[tuple[int, int]]:
    return [(place, at) for place, (_, content) in enumerate(files) for at in range(0, len(content), size)]


def lent(content: bytearray, at: int, size: int, given: list[int]) -> tuple[memoryview, Any]:
    """A copy, which is spoiled when it is given back."""
    copy = bytearray(content[at : at + size])

    def back() -> None:
        given.append(at)
        copy[:] = bytes(len(copy))

    return memoryview(copy), back


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("seed", range(3))
def test_digests_are_those_of_the_files(
    files: list[tuple[Path, bytearray]], name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "BEHIND_BYTES", 300_000)
    group, source = Digests(ENGINES[name]()), random.Random(seed)
    found, order = opened(group, files), pieces(files, 70_001)
    if seed:
        source.shuffle(order)
    given: list[int] = []
    for place, at in order:
        view, back = lent(files[place][1], at, 70_001, given)
        if source.random() < 0.5:
            found[place].note(at, view, back)
        else:
            found[place].note(at, view)
            view[:] = bytes(len(view))
    for digest, (_, content) in zip(found, files, strict=True):
        assert digest.finish() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ENGINES)
def test_all_that_was_lent_is_given_back_once(files: list[tuple[Path, bytearray]], name: str) -> None:
    found, given = opened(Digests(ENGINES[name]()), files), []  # type: list[FileDigest], list[int]
    order = pieces(files, 50_000)
    for place, at in sorted(order, key=lambda piece: (piece[1], piece[0])):
        found[place].note(at, *lent(files[place][1], at, 50_000, given))
    for digest in found:
        digest.finish()
    assert sorted(given) == sorted(at for _, at in order)


def test_little_is_kept_of_what_is_lent_ahead(files: list[tuple[Path, bytearray]]) -> None:
    (digest,), given = opened(Digests(), files[:1]), []  # type: list[FileDigest], list[int]
    ahead = range(50_000, len(files[0][1]), 50_000)
    for at in ahead:
        digest.note(at, *lent(files[0][1], at, 50_000, given))
    assert len(ahead) - len(given) == digests.MOST_LENT == 4
    digest.note(0, *lent(files[0][1], 0, 50_000, given))
    assert digest.finish() == hashlib.sha256(files[0][1]).hexdigest()


def test_files_that_grow_together_are_hashed_together(files: list[tuple[Path, bytearray]]) -> None:
    own = Together()
    found = opened(Digests(own), [files[place] for place in (0, 2, 4)])
    for at in range(0, 700_000, 10_000):
        for digest, place in zip(found, (0, 2, 4), strict=True):
            digest.note(at, memoryview(files[place][1])[at : at + 10_000])
    assert set(own.seen) == {3}


def test_several_threads_may_tell(files: list[tuple[Path, bytearray]]) -> None:
    found = opened(Digests(engine(Compiler())), files)
    left, given = iter(sorted(pieces(files, 9_000), key=lambda piece: piece[1])), []  # type: Any, list[int]
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                piece = next(left, None)
            if piece is None:
                return
            place, at = piece
            found[place].note(at, *lent(files[place][1], at, 9_000, given))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for digest, (_, content) in zip(found, files, strict=True):
        assert digest.finish() == hashlib.sha256(content).hexdigest()


def test_a_file_that_shrinks_is_told(files: list[tuple[Path, bytearray]]) -> None:
    (digest,) = opened(Digests(), files[:1])
    content = memoryview(files[0][1])
    digest.note(500_000, content[500_000:])
    files[0][0].write_bytes(b"")
    with pytest.raises(FileUnreadable, match="became shorter"):
        digest.note(0, content[:500_000])
