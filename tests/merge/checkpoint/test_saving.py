"""What the disk refuses while tensors are saved is told as an error of the operating system."""

import errno
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merge.checkpoint.saving import save_tensors


def test_tensors_come_back(tmp_path: Path) -> None:
    save_tensors({"a": torch.arange(3.0)}, tmp_path / "x", {"said": "so"})
    assert load_file(tmp_path / "x")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("name", "number"), [("there", errno.EISDIR), ("nowhere/x", errno.ENOENT)])
def test_what_the_disk_refuses_is_an_error_of_the_operating_system(
    tmp_path: Path, name: str, number: int
) -> None:
    (tmp_path / "there/full").mkdir(parents=True)
    with pytest.raises(OSError, match=str(tmp_path)) as failed:
        save_tensors({"a": torch.zeros(3)}, tmp_path / name)
    assert failed.value.errno == number


def test_a_file_that_has_no_room_is_told_from_other_errors(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[0][1]))
    try:
        with pytest.raises(OSError, match="too large") as failed:
            save_tensors({"a": torch.zeros(1 << 16)}, tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert failed.value.errno == errno.EFBIG
