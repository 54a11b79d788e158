"""Any block of any tensor, bit for bit, whatever the block sizes, dtypes and threads."""

import os
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge import file_errors
from merge.checkpoint import files
from merge.checkpoint import reader as reading
from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import index_folder
from merge.checkpoint.reader import TensorReader
from tests import tiny

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
OTHERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    values = torch.randn(37, 11, generator=torch.Generator().manual_seed(1)) * 3
    tensors = {str(dtype).removeprefix("torch."): values.to(dtype) for dtype in (*FLOATS, *OTHERS)}
    tiny.write_tensors(made, {**tensors, "scalar": torch.tensor(3.5), "empty": torch.empty(0, 3)})
    return made


def original(dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(37, 11, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)


def raw_buffer(info: TensorInfo, entries: int) -> torch.Tensor:
    return torch.empty(entries, dtype=torch_dtype(info.dtype, info.name))


@pytest.mark.parametrize("dtype", [*FLOATS, *OTHERS], ids=str)
def test_every_dtype_is_read_raw(folder: Path, dtype: torch.dtype) -> None:
    with TensorReader(folder, index_folder(folder)) as reader:
        (info,) = reader.index.tensors[str(dtype).removeprefix("torch.")].stored
        out = raw_buffer(info, info.numel)
        reader.read_into(info, 0, info.numel, out)
    assert torch.equal(out.view(torch.uint8), original(dtype).view(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("compute", [torch.float32, torch.float64], ids=str)
def test_every_float_dtype_is_raised_exactly(folder: Path, dtype: torch.dtype, compute: torch.dtype) -> None:
    with TensorReader(folder, index_folder(folder)) as reader:
        out = torch.empty(407, dtype=compute)
        reader.read_float(str(dtype).removeprefix("torch."), 0, 407, out)
    assert torch.equal(out, original(dtype).view(-1).to(compute))


@given(st.integers(0, 407), st.integers(0, 407), st.sampled_from(FLOATS))
@settings(max_examples=60, deadline=None)
def test_any_range_is_the_slice_of_the_whole(
    folder: Path, first: int, count: int, dtype: torch.dtype
) -> None:
    count = min(count, 407 - first)
    with TensorReader(folder, index_folder(folder)) as reader:
        out = torch.full((407,), -1.0)
        reader.read_float(str(dtype).removeprefix("torch."), first, count, out)
    assert torch.equal(out[:count], original(dtype).view(-1)[first : first + count].float())
    assert bool((out[count:] == -1).all())


def test_pieces_smaller_than_a_tensor_join_without_a_seam(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE_ELEMENTS", 10)
    with TensorReader(folder, index_folder(folder)) as reader:
        out = torch.empty(407)
        reader.read_float("bfloat16", 0, 407, out)
    assert torch.equal(out, original(torch.bfloat16).view(-1).float())


def test_scalars_and_empty_tensors_are_read(folder: Path) -> None:
    with TensorReader(folder, index_folder(folder)) as reader:
        out = torch.zeros(1)
        reader.read_float("scalar", 0, 1, out)
        reader.read_float("empty", 0, 0, torch.empty(0))
    assert out.item() == 3.5


def test_many_threads_read_the_same_files(folder: Path) -> None:
    wrong: list[str] = []
    with TensorReader(folder, index_folder(folder)) as reader:

        def work(number: int) -> None:
            out = torch.empty(50)
            for turn in range(60):
                dtype = FLOATS[(number + turn) % len(FLOATS)]
                first = (turn * 37 + number) % 350
                reader.read_float(str(dtype).removeprefix("torch."), first, 50, out)
                if not torch.equal(out, original(dtype).view(-1)[first : first + 50].float()):
                    wrong.append(str(dtype))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_read_that_comes_in_small_parts_is_completed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, offset, flags=0: whole(fd, [buffers[0][:7]], offset, flags)
    )
    with TensorReader(folder, index_folder(folder)) as reader:
        out = torch.empty(407)
        reader.read_float("float32", 0, 407, out)
    assert torch.equal(out, original(torch.float32).view(-1))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_few_files_stay_open_and_none_after_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_OPEN_FILES", 3)
    folder = tiny.llama(tmp_path, shards=10)
    index = index_folder(folder)
    before = open_files()
    with TensorReader(folder, index) as reader:
        for info in index.tensors.values():
            reader.read_into(info, 0, info.numel, raw_buffer(info, info.numel))
            assert open_files() <= before + 4
    assert open_files() == before


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path)
    index = index_folder(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with (
        TensorReader(folder, index) as reader,
        pytest.raises(file_errors.FileSizeMismatch, match=r"model\.safetensors"),
    ):
        for info in index.tensors.values():
            reader.read_into(info, 0, info.numel, raw_buffer(info, info.numel))


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path)
    index = index_folder(folder)
    (folder / "model.safetensors").unlink()
    with (
        TensorReader(folder, index) as reader,
        pytest.raises(file_errors.FileUnreadable, match=r"model\.safetensors"),
    ):
        reader.read_float("model.norm.weight", 0, 1, torch.empty(1))


def test_a_packed_dtype_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    text = b'{"w.packed":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0")
    refused = pytest.raises(file_errors.DtypeUnsupported, match=r"w\.packed is stored as F4")
    with TensorReader(tmp_path, index_folder(tmp_path)) as reader, refused:
        reader.read_float("w.packed", 0, 4, torch.empty(4))


def test_a_buffer_of_the_wrong_dtype_or_a_range_beyond_the_tensor_is_a_bug(folder: Path) -> None:
    with TensorReader(folder, index_folder(folder)) as reader:
        info = reader.index.tensors["bfloat16"]
        with pytest.raises(ValueError, match="BF16"):
            reader.read_into(info, 0, 4, torch.empty(4))
        with pytest.raises(ValueError, match="407 entries"):
            reader.read_into(info, 400, 8, torch.empty(8, dtype=torch.bfloat16))
