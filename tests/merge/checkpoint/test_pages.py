"""Files in this process's addresses: the bytes that reading gives, and never a read that kills."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from merge.checkpoint import pages
from merge.checkpoint.pages import Pages

CONTENT = bytes(at * 7 % 251 for at in range(3 * os.sysconf("SC_PAGESIZE") + 100))


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(CONTENT)
    opened = os.open(tmp_path / "file", os.O_RDWR)
    yield opened
    os.close(opened)


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.mark.parametrize(("begin", "size"), [(0, 10), (8, 5000), (4096, 4096), (4097, 8200), (12_380, 8)])
def test_bytes_are_those_of_the_file_wherever_they_begin(fd: int, begin: int, size: int) -> None:
    mapped = Pages(fd, begin, size)
    for at, count in ((0, size), (size // 2, size - size // 2), (size - 1, 1)):
        assert mapped.bring(fd, at, count)
        assert ctypes.string_at(mapped.address + at, count) == CONTENT[begin + at : begin + at + count]


def test_what_a_file_lacks_is_not_brought(fd: int) -> None:
    mapped = Pages(fd, 0, len(CONTENT))
    assert mapped.bring(fd, 0, 4096)
    os.ftruncate(fd, 2 * 4096)
    assert not mapped.bring(fd, 0, 4096)
    os.ftruncate(fd, len(CONTENT))
    assert mapped.bring(fd, 0, 4096)


def test_bytes_beyond_the_end_are_never_brought(fd: int) -> None:
    mapped = Pages(fd, 0, len(CONTENT) + 3 * 4096)
    assert not mapped.bring(fd, 0, 4096)


def test_addresses_are_given_back(fd: int, tmp_path: Path) -> None:
    mapped = Pages(fd, 0, 5000)
    assert is_mapped(tmp_path / "file")
    del mapped
    assert not is_mapped(tmp_path / "file")


def test_what_cannot_be_mapped_says_so(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, other = os.pipe()
    with pytest.raises(OSError, match="cannot be mapped"):
        Pages(pipe, 0, 100)
    os.close(pipe)
    os.close(other)
    monkeypatch.setattr(pages, "_LIBC", None)
    with pytest.raises(OSError, match="nothing is mapped"):
        Pages(fd, 0, 100)
