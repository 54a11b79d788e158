"""Results kept on this machine."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.artifacts import artifact_folder, keep


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
