"""Compiled loops give the bits of the eager code, and leave to it what they do not understand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from merge.checkpoint.dtype import safetensors_name
from merge.contract.method import Kind, Method
from merge.planning.sizing import PIECE_ELEMENTS
from merge.running.blocks import Buffers
from merge.running.fused import compiler, loops
from merge.running.fused.loops import Loops
from merge.running.fused.windows import Windows, counted, found_in
from tests.merge.every import METHODS, count_of, moved, steps_of
from tests.merge.running.fused.stand_ins import (
    BF16,
    F16,
    F32,
    Memory,
    bits,
    block_of,
    chain_of,
    entries,
    lying,
    measure_both,
    output_of,
    places,
)
from tests.merge.whole import known_for

pytestmark = pytest.mark.usefixtures("small_jobs_too")

SHAPES = [(3, PIECE_ELEMENTS // 2 - 1000), (150_001,)]
BLOCKWISE = [method for method in METHODS if method.granularity != "tensor"]


def uses_base(method: Method) -> bool:
    return bool(method.needs.base) or method.kind is not Kind.COMBINE


@pytest.mark.parametrize("changed", [False, True], ids=["defaults", "other settings"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", BLOCKWISE, ids=lambda method: method.name)
def test_every_method_gives_the_same_bits_compiled(
    method: Method, shape: tuple[int, ...], changed: bool
) -> None:
    count, based = count_of(method), uses_base(method)
    steps = steps_of(method, moved(method) if changed else {})
    stored = entries(shape, [BF16] * (count + based))
    chain = chain_of(steps, shape, count)
    output = output_of(shape, stored, based, "BF16")
    known = known_for(chain, based, steps)
    made = Loops(Memory(stored), Buffers(), chain.entries, True, informed={"w": known})  # type: ignore[arg-type]
    for level in range(1, chain.levels + 1):
        measure_both(made, chain, output, stored, based, level, known)
    writing = made.writing(chain, output)
    if writing is None:
        by_column = method.name == "widen" and len(shape) == 2
        by_row = method.name in ("della", "arcee_fusion") and chain.columns <= PIECE_ELEMENTS
        assert method.granularity == "row" and not by_row and not by_column, made.reasons
        return
    for first, size in chain.spans(chain.piece):
        ours = writing._made(lying(stored, known, first), first, size)
        theirs = chain.compute(block_of(chain, stored, based, first, size, known)).reshape(-1).to(BF16)
        assert ours is not None
        assert torch.equal(bits(ours), bits(theirs))


@pytest.mark.parametrize("dtypes", [(F16, F16, F32), (F32, BF16, F16)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_stored_dtypes_may_differ(dtypes: tuple[torch.dtype, ...], dtype: torch.dtype) -> None:
    stored = entries((70_001,), dtypes)
    chain = chain_of([("task_arithmetic", {"scale": 0.3})], (70_001,), 2)
    output = output_of((70_001,), stored, True, safetensors_name(dtype))
    made = Loops(Memory(stored), Buffers(), chain.entries, True)  # type: ignore[arg-type]
    writing = made.writing(chain, output)
    assert writing is not None, made.reasons
    ours = writing._made(places(stored, 0), 0, 70_001)
    theirs = chain.compute(block_of(chain, stored, True, 0, 70_001)).to(dtype)
    assert ours is not None
    assert torch.equal(bits(ours), bits(theirs))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 63, 64, 65, 127, 1000, 4095, 33_333, 61_952, 65_535])
def test_pieces_of_any_length_are_folded_as_torch_folds_them(length: int) -> None:
    stored = entries((length,), [F32, BF16])
    chain = chain_of([("slerp", {"t": 0.3})], (length,), 2)
    made = Loops(Memory(stored), Buffers(), length, True)  # type: ignore[arg-type]
    measure_both(made, chain, output_of((length,), stored, False, "F32"), stored, False, 1)
    assert made.made == 1


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 11, 32])
@pytest.mark.parametrize("columns", [64, 70, 2049])
def test_columns_of_any_length_are_summed_as_torch_sums_them(rows: int, columns: int) -> None:
    """In pieces of as many rows as there are, or as a piece has, and what is left."""
    shape = (rows if columns > 1000 else 1000 + rows, columns)
    stored = entries(shape, [BF16, BF16])
    chain = chain_of([("widen", {})], shape, 1)
    made = Loops(Memory(stored), Buffers(), chain.entries, True)  # type: ignore[arg-type]
    measure_both(made, chain, output_of(shape, stored, True, "BF16"), stored, True, 1)
    assert made.made == 1, made.reasons


@pytest.fixture
def old_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Builds for the oldest processors of this family."""
    flags = tuple(flag for flag in compiler._FLAGS if not flag.startswith("-march"))
    monkeypatch.setattr(compiler, "_FLAGS", flags)
    monkeypatch.setenv(compiler.FOLDER_VARIABLE, str(tmp_path / "kernels"))
    monkeypatch.setattr(loops, "_COMPILER", compiler.Compiler())


@pytest.mark.parametrize("name", ["dare", "slerp", "ties", "pcb"])
@pytest.mark.usefixtures("old_processor")
def test_bits_do_not_depend_on_the_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "LEAST_SAMPLED", 1)
    method = next(method for method in METHODS if method.name == name)
    test_every_method_gives_the_same_bits_compiled(method, (150_001,), False)
    if name == "ties":
        test_a_guess_finds_the_value_that_counting_finds("ties", {"density": 0.3}, monkeypatch)


RANKING: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.3},
    "trim": {"density": 0.05},
    "breadcrumbs": {"density": 0.7, "gamma": 0.05},
    "sce": {"density": 0.1},
    "pcb": {"scope": "tensor"},
}


@pytest.mark.parametrize(("name", "settings"), RANKING.items())
def test_a_guess_finds_the_value_that_counting_finds(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "LEAST_SAMPLED", 1)
    shape = (300_001,)
    stored = entries(shape, [BF16] * 4)
    method = next(method for method in METHODS if method.name == name)
    chain = chain_of(steps_of(method, settings), shape, 3)
    output = output_of(shape, stored, True, "BF16")
    made = Loops(Memory(stored), Buffers(), chain.entries, True)  # type: ignore[arg-type]
    tasks = [task for task in chain.tasks if task.due(1)]
    windows = made.measuring(chain, output, tasks, guess=True)
    assert isinstance(windows, Windows), made.reasons
    for first, size in ((0, 100_000), (100_000, 200_001)):
        rooms = windows._rooms(places(stored, first), first, size)
        assert rooms is not None
        left = iter(rooms)
        block = block_of(chain, stored, True, first, size)
        for (_, values), sought in zip(chain.quantities(block, tasks), windows.sought, strict=True):
            for value, each in zip(values, sought.windows, strict=True):
                for window in dict.fromkeys(each):
                    assert counted(next(left))[0] == found_in(value, window)[0]
            for value in values if sought.nonzero else ():
                assert int(next(left)[0]) == int(value.count_nonzero())
        left = iter(rooms)
        for sought in windows.sought:
            sought.take(left)
    settled = windows.settle()
    assert settled is not None
    for level in (1, 2):
        measure_both(made, chain, output, stored, True, level)
    assert settled == [task.value for task in tasks]


@pytest.mark.parametrize(("columns", "made"), [(PIECE_ELEMENTS, 1), (PIECE_ELEMENTS + 1, 0)])
def test_rows_too_long_for_stand_ins_are_left_to_the_eager_code(columns: int, made: int) -> None:
    stored = entries((1, columns), [BF16, BF16])
    chain = chain_of([("arcee_fusion", {})], (1, columns), 1)
    tried = Loops(Memory(stored), Buffers(), columns, True)  # type: ignore[arg-type]
    found = tried.measuring(chain, output_of((1, columns), stored, True, "BF16"), chain.tasks[:1])
    assert (found is not None) == bool(made)


def test_sums_of_columns_are_taken_a_block_at_a_time() -> None:
    """A long span has as many sums as there are columns, for every few rows."""
    shape = (64, 2049)
    stored = entries(shape, [BF16, BF16])
    chain = chain_of([("widen", {})], shape, 1)
    made = Loops(Memory(stored), Buffers(), chain.entries, True)  # type: ignore[arg-type]
    found = made.measuring(chain, output_of(shape, stored, True, "BF16"), chain.tasks)
    assert found is not None, made.reasons
    assert found.span(PIECE_ELEMENTS) == PIECE_ELEMENTS
