"""What the factors of an adapter add is made in one go with the bits of the eager code, or left to it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge.checkpoint.index import attach, index_adapter_folder, index_folder
from merge.checkpoint.reader import TensorReader
from merge.running.blocks import Buffers, Inputs
from merge.running.fused import products as fused
from merge.running.fused.compiler import FOLDER_VARIABLE, Compiler
from merge.running.fused.loops import LEAST_TOTAL, Loops
from merge.running.fused.products import PART, Products
from tests import tiny

NAME = "model.wide.weight"
SHAPE = (700, 900)
"""Its rows are multiplied 72 at a time, so that 52 are left over."""
SPANS = (
    (0, 630_000),
    (0, 1),
    (5, 13),
    (899, 2),
    (7, 70_001),
    (64_799, 70_000),
    (583_000, 47_000),
    (629_999, 1),
)


@pytest.fixture(scope="module")
def multiplying() -> Products:
    found = fused.products(Compiler())
    if not isinstance(found, Products):
        pytest.skip("no compiler")
    return found


def reader_of(folder: Path, dtype: torch.dtype, shape: tuple[int, int], rank: int) -> TensorReader:
    base = folder / "base"
    tiny.write_tensors(base, {NAME: tiny.noise("w", shape, 0).to(dtype)})
    adapter = tiny.lora(folder / "lora", {NAME.removesuffix(".weight"): shape}, r=rank, alpha=10)
    return TensorReader(base, attach(index_folder(base, "base"), index_adapter_folder(adapter)), adapter)


def both(reader: TensorReader, multiplying: Products | None, first: int, count: int) -> tuple[int, Tensor]:
    """How many entries the loop made, and all of them."""
    reader.multiplying = multiplying
    reader._factors.clear()
    out = torch.full((count,), torch.nan)
    made = reader._changed_at_once(NAME, first, count, out)
    reader.read_float(NAME, first, count, out)
    return made, out.view(torch.int32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("rank", [24, 204])
def test_products_have_the_bits_of_the_eager_code(
    tmp_path: Path, multiplying: Products, dtype: torch.dtype, rank: int
) -> None:
    with reader_of(tmp_path, dtype, SHAPE, rank) as reader:
        for first, count in SPANS:
            made, ours = both(reader, multiplying, first, count)
            nothing, theirs = both(reader, None, first, count)
            assert torch.equal(ours, theirs)
            assert nothing == 0 and (made == count or rank > PART)  # so many are added up in parts


@pytest.mark.parametrize("rows", [2, 72 + 2, 72 + 3, 2 * 72])
def test_rows_that_torch_adds_up_otherwise_are_left_to_it(
    tmp_path: Path, multiplying: Products, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    agrees = Products._agrees
    monkeypatch.setattr(
        Products, "_agrees", lambda ours, part, *shape: shape[1] > 3 and agrees(ours, part, *shape)
    )
    monkeypatch.setattr(multiplying, "_parts", {})
    with reader_of(tmp_path, torch.bfloat16, (rows, 900), 24) as reader:
        made, ours = both(reader, multiplying, 450, (rows - 1) * 900)
        assert made == max(0, rows // 72 * 72 * 900 - 450 - (450 if rows % 72 == 0 else 0))
        assert torch.equal(ours, both(reader, None, 450, (rows - 1) * 900)[1])


def test_another_dtype_and_what_lies_beyond_the_tensor_are_left_to_the_eager_code(
    tmp_path: Path, multiplying: Products
) -> None:
    with reader_of(tmp_path, torch.bfloat16, SHAPE, 8) as reader:
        reader.multiplying = multiplying
        assert not reader._changed_at_once(NAME, 0, 512, torch.empty(512, dtype=torch.float64))
        assert not reader._changed_at_once(NAME, 630_000 - 511, 512, torch.empty(512))
        inputs = Inputs({"a": reader}, Buffers(), torch.float32)
        assert Loops(inputs, Buffers(), LEAST_TOTAL, True).multiplying is not None
        assert Loops(inputs, Buffers(), LEAST_TOTAL - 1, True).multiplying is None


def test_a_file_that_ends_too_early_is_left_to_the_eager_code(tmp_path: Path, multiplying: Products) -> None:
    with reader_of(tmp_path, torch.bfloat16, SHAPE, 8) as reader:
        file = tmp_path / "base" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100_000])
        reader.multiplying = multiplying
        out = torch.empty(1000)
        assert reader._changed_at_once(NAME, 0, 1000, out) == 1000
        assert reader._changed_at_once(NAME, 629_000, 1000, out) == 0


def test_an_order_of_summing_that_torch_does_not_have_is_not_used(multiplying: Products) -> None:
    assert multiplying._part("BF16", 72, 64, 900) != 7
    assert not multiplying._agrees(7, "BF16", 72, 64, 900)


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "off")
    assert fused.products(Compiler()) is None
