"""A shard is written in place, in any order, and its digest is that of the file."""

import hashlib
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merge import errors, file_errors
from merge.checkpoint.layout import ShardLayout, plan_shards
from merge.checkpoint.writer import ShardWriter

LARGE = 3 << 20
"""Entries of a tensor large enough for several early writebacks and hash pieces."""


def layout_of(tensors: dict[str, torch.Tensor]) -> ShardLayout:
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.bool: "BOOL", torch.int64: "I64"}
    return plan_shards([(name, names[t.dtype], tuple(t.shape)) for name, t in tensors.items()], 1 << 40)[0]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(LARGE, dtype=torch.float32),
        "b": torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "scalar": torch.tensor(7),
        "flags": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 4),
    }


def test_what_was_written_is_what_the_safetensors_library_reads(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    layout = layout_of(tensors)
    with ShardWriter(tmp_path / layout.file, layout) as writer:
        for name, tensor in tensors.items():
            writer.write_at(name, 0, tensor)
        done = writer.finish()
    found = load_file(tmp_path / layout.file)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert done.sha256 == sha256(tmp_path / layout.file)
    assert done.size == (tmp_path / layout.file).stat().st_size == layout.size


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_blocks_changes_nothing(
    tmp_path: Path, tensors: dict[str, torch.Tensor], seed: int
) -> None:
    layout = layout_of(tensors)
    blocks = [
        (name, first, tensor.view(-1)[first : first + 100_003])
        for name, tensor in tensors.items()
        for first in range(0, tensor.numel(), 100_003)
    ]
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed)).tolist()
    with ShardWriter(tmp_path / "x", layout) as writer:
        for position in order:
            writer.write_at(*blocks[position])
        done = writer.finish()
    with ShardWriter(tmp_path / "y", layout) as writer:
        for name, tensor in tensors.items():
            writer.write_at(name, 0, tensor)
        assert writer.finish().sha256 == done.sha256 == sha256(tmp_path / "x")


def test_several_threads_may_write(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    layout = layout_of(tensors)
    blocks = iter(
        [
            (name, first, tensor.view(-1)[first : first + 50_000])
            for name, tensor in tensors.items()
            for first in range(0, tensor.numel(), 50_000)
        ]
    )
    lock = threading.Lock()
    writer = ShardWriter(tmp_path / "x", layout)

    def work() -> None:
        while True:
            with lock:
                block = next(blocks, None)
            if block is None:
                return
            writer.write_at(*block)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.finish().sha256 == sha256(tmp_path / "x")
    assert torch.equal(load_file(tmp_path / "x")["a"], tensors["a"])


def test_space_is_reserved_before_anything_is_written(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    layout = layout_of(tensors)
    with ShardWriter(tmp_path / "x", layout):
        found = (tmp_path / "x").stat()
        assert found.st_size == layout.size
        assert found.st_blocks * 512 >= layout.size


def test_an_unfinished_shard_cannot_be_passed_off_as_finished(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    with ShardWriter(tmp_path / "x", layout_of(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.write_at(name, 0, tensor[:-1] if name == "a" else tensor)
        with pytest.raises(errors.ShardIncomplete, match="lacks 1 entries of a"):
            writer.finish()


def test_a_block_of_another_dtype_or_beyond_the_tensor_is_a_bug(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    with ShardWriter(tmp_path / "x", layout_of(tensors)) as writer:
        with pytest.raises(ValueError, match="laid out as F32"):
            writer.write_at("a", 0, tensors["b"])
        with pytest.raises(ValueError, match="entries"):
            writer.write_at("b", 2999, tensors["b"].view(-1)[:2])
        writer.write_at("scalar", 0, tensors["scalar"])
        with pytest.raises(ValueError, match="twice"):
            writer.write_at("scalar", 0, tensors["scalar"])


def test_a_full_disk_says_how_much_room_was_needed(tmp_path: Path) -> None:
    layout = plan_shards([("a", "F32", (1 << 45,))], 1 << 60)[0]
    with pytest.raises(errors.DiskFull, match=rf"the {layout.size} bytes of [^/]*\.$"):
        ShardWriter(tmp_path / "x", layout)
    assert (tmp_path / "x").stat().st_blocks == 0


def test_a_link_in_the_way_is_not_followed(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "x").symlink_to(tmp_path / "victim")
    with pytest.raises(file_errors.FileUnreadable):
        ShardWriter(tmp_path / "x", layout_of(tensors))
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_writing_again_replaces_what_a_crash_left(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    (tmp_path / "x").write_bytes(b"\xff" * (layout_of(tensors).size + 100))
    with ShardWriter(tmp_path / "x", layout_of(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.write_at(name, 0, tensor)
        assert writer.finish().sha256 == sha256(tmp_path / "x")


def test_what_is_already_there_is_taken_in_as_it_is(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    layout, given = layout_of(tensors), []
    with ShardWriter(tmp_path / "x", layout) as writer:
        for name, tensor in tensors.items():
            for first in range(0, tensor.numel(), 100_003):
                block = tensor.view(-1)[first : first + 100_003]
                fd, offset = writer.place_of(name, first)
                os.pwrite(fd, block.contiguous().view(torch.uint8).numpy().tobytes(), offset)
                writer.write_at(name, first, block, lambda: given.append(1), there=True)
        done = writer.finish()
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert done.sha256 == sha256(tmp_path / "x")
    assert len(given) == sum(-(-tensor.numel() // 100_003) for tensor in tensors.values())
