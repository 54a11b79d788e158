"""What adapters and bundles change is made in one go with the bits of the eager code, or left to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge.checkpoint.index import attach, index_adapter_folder, index_folder
from merge.checkpoint.reader import TensorReader
from merge.checkpoint.stored import At
from merge.errors import NotFinite
from merge.planning.outputs import Input
from merge.running.blocks import Buffers, Inputs
from merge.running.fused import changes as fused
from merge.running.fused.changes import Changes
from merge.running.fused.compiler import FOLDER_VARIABLE, Compiler
from merge.running.fused.loops import LEAST_TOTAL, Loops
from tests import tiny
from tests.merge.bundle.conftest import Shop

NAME = "model.embed_tokens.weight"
SPANS = ((0, 80_000), (0, 13), (5, 1), (7, 70_001), (65_530, 14_470), (16_384, 16_385), (79_999, 1))


@pytest.fixture(scope="module")
def changing() -> Changes:
    found = fused.changes(Compiler())
    if not isinstance(found, Changes):
        pytest.skip("no compiler")
    return found


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    tiny.family(tmp_path, 3, dtype=torch.float32, hidden=32, vocab=2500)
    return Shop(tmp_path)


def both(reader: TensorReader, changing: Changes, name: str, first: int, count: int) -> Iterator[Tensor]:
    """By the loop, and without it."""
    for way in (changing, None):
        reader.changing = way
        out = torch.full((count,), torch.nan)
        if way is not None:
            assert reader._changed_at_once(name, first, count, out)
        else:
            reader.read_float(name, first, count, out)
        yield out.view(torch.int32)


@pytest.mark.parametrize("kind", ["tall", "emr"])
def test_masked_changes_have_the_bits_of_the_eager_code(shop: Shop, changing: Changes, kind: str) -> None:
    shop.make(shop.recipe(kind), "bundle")
    base, bundle = shop.root / "base", shop.root / "bundle"
    index = attach(index_folder(base, "base"), index_adapter_folder(bundle), "b")
    with TensorReader(base, index, bundle) as reader:
        for first, count in SPANS:
            ours, theirs = both(reader, changing, NAME, first, count)
            assert torch.equal(ours, theirs)


def test_what_is_not_finite_or_too_long_or_another_dtype_is_left_to_the_eager_code(
    shop: Shop, changing: Changes
) -> None:
    shop.make(shop.recipe("tall"), "bundle")
    base, bundle = shop.root / "base", shop.root / "bundle"
    tensors = load_file(base / "model.safetensors")
    tensors[NAME].view(-1)[77] = torch.inf
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    index = attach(index_folder(base, "base"), index_adapter_folder(bundle), "b")
    with TensorReader(base, index, bundle) as reader:
        reader.changing = changing
        out = torch.empty(512)
        assert reader._changed_at_once(NAME, 78, 512, out)
        assert not reader._changed_at_once(NAME, 0, 512, out)
        assert not reader._changed_at_once(NAME, 80_000 - 511, 512, out)
        assert not reader._changed_at_once(NAME, 78, 512, out.double())
        inputs = Inputs({"a": reader}, Buffers(), torch.float32)
        with pytest.raises(NotFinite, match="embed_tokens"):
            inputs.load([Input("a", NAME)], 0, 512)
        assert Loops(inputs, Buffers(), LEAST_TOTAL, True).changing is not None
        assert Loops(inputs, Buffers(), LEAST_TOTAL - 1, True).changing is None


def test_a_loop_with_other_bits_is_not_used(changing: Changes, monkeypatch: pytest.MonkeyPatch) -> None:
    masked = Changes.masked

    def other(ours: Changes, a: At, b: At, c: At, bit: int, scale: float, out: Tensor) -> bool:
        return masked(ours, a, b, c, bit, scale * 1.001, out)

    monkeypatch.setattr(Changes, "masked", other)
    assert fused.changes(Compiler()) is None


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "off")
    assert fused.changes(Compiler()) is None
