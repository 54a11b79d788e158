"""The open files of a folder."""

import os
from pathlib import Path

import pytest

from merge.checkpoint.files import MAX_OPEN_FILES, OpenFiles


def test_more_files_than_may_be_open_are_read_at_the_same_time(tmp_path: Path) -> None:
    names = [f"{number}.bin" for number in range(MAX_OPEN_FILES + 2)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    files = OpenFiles(tmp_path, "model")
    for name in names:
        files.borrow(name, 0, 1)
    buffer = bytearray(len(names[0]))
    files.read(names[0], 0, memoryview(buffer))
    assert buffer == names[0].encode()
    files.close()
    assert os.pread(files.borrow(names[1], 0, 1), 1, 0) == b"1", "what is being read is not closed"
    for name in [*names, names[1]]:
        files.give_back(name)
    files.close()


@pytest.mark.parametrize("way", ["read", "read_rows", "read_pieces", "borrow"])
def test_no_file_is_opened_before_its_bytes_are_there(tmp_path: Path, way: str) -> None:
    """What comes by xet takes the place of an empty file of that size."""
    content = os.urandom(64)
    (tmp_path / "w").write_bytes(bytes(64))
    waited: list[tuple[int, int]] = []

    def arrive(name: str, begin: int, end: int) -> None:
        waited.append((begin, end))
        (tmp_path / "part").write_bytes(content)
        (tmp_path / "part").replace(tmp_path / name)

    files, buffer = OpenFiles(tmp_path, "model", arrive), bytearray(16)
    if way == "read":
        files.read("w", 16, memoryview(buffer))
    elif way == "read_rows":
        files.read_rows("w", 0, 8, [], memoryview(b""))
        files.read_rows("w", 0, 8, [2, 3], memoryview(buffer))
    elif way == "read_pieces":
        files.read_pieces("w", range(16, 32, 8), 8, memoryview(buffer))
    else:
        os.preadv(files.borrow("w", 16, 16), [buffer], 16)
    assert buffer == content[16:32]
    assert waited == [(16, 32)]
