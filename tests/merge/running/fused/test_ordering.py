"""Ranks between two loops are the ranks of the eager code."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge.kernels.row_ranks import row_ranks
from merge.running.blocks import Buffers
from merge.running.fused import ranked
from merge.running.fused.compiler import Built, Compiler
from merge.running.fused.loop import Loop
from merge.running.fused.ordering import ORDERING
from merge.running.fused.ranked import RankedLoop, halves
from merge.running.fused.samples import in_memory
from merge.running.fused.source import PAD, Sink, text
from merge.running.fused.trace import RANKS, Node, Program, Untraceable
from merge.running.places import Place

COMPILER = Compiler()
TEXTS = {"vectors": ORDERING, "plain": "#define PLAIN\n" + ORDERING}
"""For processors with long vectors, and for others."""
LARGEST = torch.finfo(torch.float32).max


def built(source: str) -> Built:
    found = COMPILER.build(source)
    assert found is not None, COMPILER.reason
    return found


def ranking(
    columns: int,
    *,
    shared: bool = True,
    ordering: Built | None = None,
    sink: Sink | None = None,
    dtype: str = "F32",
    piece: int = 0,
) -> RankedLoop:
    """Gives the ranks of what it reads, as they are or into a sink."""
    program = Program()
    read = program.add(Node("input", (), "f", 0))
    program.words += [columns, int(shared)]
    found = program.add(Node(RANKS, (read,), "f", 0))
    wide = program.add(Node("cast", (found,), "d"))
    sinks = (sink or Sink("store", found, "F32"),)
    assert sinks[0].node in (found, wide)
    first, rest, each, _ = halves(program, [found], 1)
    loops = []
    for part, into, dtypes in ((program, first, (dtype,)), (rest, sinks, (dtype, "F32"))):
        words = (ranked.ctypes.c_uint32 * 2)(*program.words)
        numbers = (ranked.ctypes.c_double * 1)()
        step = piece or 1 << 15
        loops.append(Loop(built(text(part, into, dtypes)), into, dtypes, numbers, words, step))
    run = built(ORDERING) if ordering is None else ordering
    return RankedLoop(*loops, each, columns, piece or columns, Buffers().get, run)


def ranks(loop: RankedLoop, places: list[Place], shape: tuple[int, int]) -> Tensor | None:
    count = shape[0] * shape[1]
    found = torch.empty(count + PAD)
    scratch = torch.empty(loop.scratch_bytes, dtype=torch.uint8)
    fine = loop.run(places, 0, count, (found.data_ptr(),), scratch)
    return found[:count].view(shape) if fine else None


def agrees(values: Tensor, *, shared: bool, ordering: Built) -> bool:
    loop = ranking(values.shape[1], shared=shared, ordering=ordering)
    found = ranks(loop, in_memory([values]), tuple(values.shape))
    return found is not None and torch.equal(found, row_ranks(values, shared=shared))


def near(rows: int, columns: int) -> Tensor:
    """Changes of stored weights: few digits, many equal."""
    generator = torch.Generator().manual_seed(columns)
    base = (torch.randn(rows, columns, generator=generator) * 0.02).to(torch.bfloat16)
    moved = base.float() + torch.randn(rows, columns, generator=generator) * 1e-3
    return moved.to(torch.bfloat16).float() - base.float()


def still(rows: int, columns: int) -> Tensor:
    """Most of it zero, of both signs."""
    values = near(rows, columns)
    values[values.abs() < 1e-3] = 0.0
    values[:, 1::3] *= -0.0
    return values


def fine(rows: int, columns: int) -> Tensor:
    """All digits; some too small beside the largest for bins of their own; zeros of both signs."""
    generator = torch.Generator().manual_seed(columns)
    values = torch.randn(rows, columns, generator=generator)
    values[:, 1::5] *= 1e-9
    values[:, 2::7] = 0.0
    values[:, 3::11] = -0.0
    return values


def smooth(rows: int, columns: int) -> Tensor:
    """All digits, hardly two in a bin while there are few."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))


def edged(rows: int, columns: int) -> Tensor:
    """Few digits, and here and there what is a little less or more."""
    values = smooth(rows, columns).mul_(64).round_().div_(512)
    values[:, ::20] = torch.nextafter(values[:, ::20], torch.tensor(0.0))
    values[:, 3::20] = torch.nextafter(values[:, 3::20], torch.tensor(9.0))
    values[:, 5::40] = values[:, :1]
    return values


def crowded(rows: int, columns: int) -> Tensor:
    """In falling order, and all in a few bins; but not the first row."""
    values = 1.0 + torch.arange(columns, 0, -1).repeat(rows, 1) * 2.0**-23
    values[0] = near(1, columns)[0]
    return values


def extreme(rows: int, columns: int) -> Tensor:
    """The largest numbers, and the smallest."""
    values = smooth(rows, columns).clamp_(-1, 1) * LARGEST
    values[:, ::3] = LARGEST
    values[-1] = (smooth(1, columns)[0] * 20).round_() * 2.0**-149
    return values


def alike(rows: int, columns: int) -> Tensor:
    """Three numbers whose bins follow each other."""
    return 1.0 + torch.arange(columns).remainder_(3).repeat(rows, 1) * 2.0**-9


def equal(rows: int, columns: int) -> Tensor:
    """Of each row all."""
    return torch.tensor([0.0, -1e-39, LARGEST])[:rows, None].expand(rows, columns).contiguous()


@pytest.mark.parametrize("source", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("make", [near, still, fine, smooth, edged, crowded, extreme, alike, equal])
@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 33, 64, 100, 2048, 5632, 40_000, 65_535, 131_072])
def test_ranks_are_those_of_the_eager_code(
    make: Callable[[int, int], Tensor], columns: int, source: str
) -> None:
    values = make(3, columns)
    for shared in (True, False):
        assert agrees(values, shared=shared, ordering=built(source))


def bits(low: int, high: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(low, high), min_size=1, max_size=300)


ANY = bits(0, 0x7F7FFFFF)
SOME = st.one_of(
    ANY,
    bits(0, 40),  # denormals
    bits(0x3F800000, 0x3F800040),  # in one bin
    bits(0x3C00, 0x4000).map(lambda upper: [each << 16 for each in upper]),  # few digits
    st.tuples(bits(0x3F00, 0x3F80), bits(0, 1 << 15)).map(
        lambda both: [each << 16 for each in both[0]] + [0x3F000000 + each for each in both[1][:9]]
    ),
)
"""Bits of magnitudes that one row has."""


@settings(max_examples=300, deadline=None)
@given(pool=SOME, signs=st.randoms(use_true_random=False), columns=st.integers(1, 700))
def test_any_row_is_ranked_as_by_the_eager_code(pool: list[int], signs: object, columns: int) -> None:
    row = [signs.choice(pool) | signs.choice((0, 1 << 31)) for _ in range(columns)]  # type: ignore[attr-defined]
    values = torch.from_numpy(np.array([row, row[::-1]], dtype=np.uint32).view(np.float32))
    for source in TEXTS.values():
        assert agrees(values, shared=True, ordering=built(source))


def test_rows_are_read_from_files_of_the_right_length(tmp_path: Path) -> None:
    rows, columns = 40, 1500
    values = near(rows, columns).to(torch.bfloat16)
    file = tmp_path / "entries"
    file.write_bytes(b"head" + values.view(torch.int16).numpy().tobytes())
    loop = ranking(columns, dtype="BF16")
    with file.open("rb") as stream:
        found = ranks(loop, [Place(stream.fileno(), 4, 0)], (rows, columns))
        assert found is not None
        assert torch.equal(found, row_ranks(values.float()))
        os.truncate(file, 5000)
        assert ranks(loop, [Place(stream.fileno(), 4, 0)], (rows, columns)) is None


def test_what_is_not_finite_is_left_to_the_eager_code() -> None:
    values = near(3, 100)
    values[1, 7] = torch.inf
    assert ranks(ranking(100), in_memory([values]), (3, 100)) is None


def test_sums_of_pieces_go_on_where_they_were() -> None:
    columns, piece, pieces = 100, 5000, 9
    loop = ranking(columns, sink=Sink("sum", 2), piece=piece)
    values = near(piece * pieces // columns, columns)
    found = torch.zeros(pieces, dtype=torch.float64)
    scratch = torch.empty(loop.scratch_bytes, dtype=torch.uint8)
    assert loop.run(in_memory([values]), 0, values.numel(), (found.data_ptr(),), scratch)
    wanted = [each.double().sum() for each in row_ranks(values).view(pieces, -1)]
    assert torch.allclose(found, torch.stack(wanted), rtol=1e-14)


def test_without_what_ranks_there_is_no_loop() -> None:
    whole = ranking(7)
    with pytest.raises(Untraceable):
        RankedLoop(whole.before, whole.after, (True,), 7, 7, Buffers().get, None)
