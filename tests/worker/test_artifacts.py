"""Results kept on this machine."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.artifacts import artifact_folder, keep
from worker.endings import describe


def test_a_result_moves_as_a_whole_and_a_second_attempt_finds_it_done(tmp_path: Path) -> None:
    output = tmp_path / "scratch" / "output"
    output.mkdir(parents=True)
    (output / "model.safetensors").write_bytes(b"weights")
    target = artifact_folder(tmp_path / "data", "job_1")
    keep(output, target)
    assert (target / "model.safetensors").read_bytes() == b"weights" and not output.exists()
    keep(output, target)
    assert [path.name for path in target.parent.iterdir()] == ["job_1"]


@pytest.fixture
def other_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_result_moves_between_disks(tmp_path: Path, other_disk: Path) -> None:
    output = other_disk / "output"
    (output / "sub").mkdir(parents=True)
    (output / "sub" / "file").write_bytes(b"x")
    target = artifact_folder(tmp_path, "job_1")
    target.parent.mkdir(parents=True)
    leftover = target.with_name(".job_1.partial")
    leftover.mkdir()
    (leftover / "half").write_bytes(b"y")
    keep(output, target)
    assert [str(path.relative_to(target)) for path in sorted(target.rglob("*"))] == ["sub", "sub/file"]
    assert not leftover.exists()


def test_a_full_disk_is_told_as_such_and_is_not_left_fuller(
    tmp_path: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    output = other_disk / "output"
    output.mkdir()
    (output / "model.safetensors").write_bytes(b"weights")
    target = artifact_folder(tmp_path, "job_1")
    monkeypatch.setattr(shutil, "copyfile", no_room)
    with pytest.raises(OSError, match="No space left") as caught:
        keep(output, target)
    assert describe(caught.value).code == "disk_full"
    assert list(target.parent.iterdir()) == []
