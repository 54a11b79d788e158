"""The open files of a folder."""

from pathlib import Path

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
    for name in names:
        files.give_back(name)
    files.close()
