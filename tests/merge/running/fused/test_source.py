"""Loops from text, on entries whose places matter: the last ones, every other one, and those that are not
finite.
"""

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.checkpoint.dtype import torch_dtype
from merge.running.blocks import Buffers
from merge.running.fused.compiler import Compiler
from merge.running.fused.loop import Loop
from merge.running.fused.proven import Proven
from merge.running.fused.samples import in_memory
from merge.running.fused.source import BLOCK, HEAD, PAD, Sink, block_of, text
from merge.running.fused.trace import Node, Program, Untraceable
from merge.running.fused.windows import Window, counted, found_in

COMPILER = Compiler()
ENDLESS = 0x7FFFFFFF
COUNTS = (1, 16, 17, 31, 33, 1023, 1025, 2079, 40_000)
pytestmark = pytest.mark.skipif(COMPILER.build("int run() { return 0; }") is None, reason="no compiler")


def changes(sinks: tuple[Sink, ...], dtype: str, words: list[int]) -> Loop:
    """Of the second input from the first."""
    nodes = [Node("input", (), "f", 0), Node("input", (), "f", 1), Node("sub", (1, 0), "f")]
    built = COMPILER.build(text(Program(nodes), sinks, (dtype, dtype)))
    assert built is not None, COMPILER.reason
    numbers, told = (ctypes.c_double * 1)(), (ctypes.c_uint32 * max(1, len(words)))(*words)
    return Loop(built, sinks, (dtype, dtype), numbers, told, block_of(sinks))


def entries(count: int, dtype: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    base = torch.randn(count, generator=generator) * 0.02
    moved = base + torch.randn(count, generator=generator) * 1e-3
    moved[::7] = base[::7]
    return [values.to(torch_dtype(dtype)) for values in (base, moved)]


def ran(loop: Loop, stored: list[Tensor], into: list[Tensor]) -> bool:
    scratch = torch.empty(loop.scratch_bytes, dtype=torch.uint8)
    addresses = [room.data_ptr() for room in into]
    return loop.run(in_memory(stored), 0, stored[0].numel(), addresses, scratch)


def bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))


@pytest.mark.parametrize("kind", ["window", "sum", "columns"])
@pytest.mark.parametrize("many", [1, 65, 2000])
def test_no_loop_takes_more_than_there_is_of_a_stack(kind: str, many: int) -> None:
    """Two ranks of each of 32 sources, say, or the products of all pairs of them."""
    sinks = tuple(Sink(kind, 0, word=0, size=64) for _ in range(many))
    program = Program([Node("input", (), "f", 0)], words=[64, 64, 0])
    body = text(program, sinks, ("F32",))
    block = int(body.split("#define BLOCK ")[1].split("\n")[0])
    assert block % PAD == 0
    if kind == "window":
        assert body.count("[BLOCK + LANES]") == many
        assert 4 * (block + 16) * many < 5 << 20
        assert many > 1 or block == BLOCK
    elif many == 2000:
        with pytest.raises(Untraceable, match="too much"):
            Proven(COMPILER, Buffers()).plain(program, sinks, ("F32",), block)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
@pytest.mark.parametrize("crowded", [False, True])
def test_windows_of_every_shape_are_counted_as_the_eager_code_would(dtype: str, crowded: bool) -> None:
    ends = [(bits(2e-3), ENDLESS), (0, 0), (bits(1e-3), bits(1.1e-3)), (0, bits(1e-4)), (0, ENDLESS)]
    windows = [Window(*each, 0.5, crowded) for each in ends]
    words = [word for each in windows for word in (each.low, each.high, int(each.crowded))]
    sinks = tuple(Sink("window", 2, word=3 * place) for place in range(len(windows)))
    loop = changes((*sinks, Sink("nonzero", 2)), dtype, words)
    for count in COUNTS:
        stored = entries(count, dtype)
        rooms = [torch.zeros(HEAD + count, dtype=torch.int32) for _ in range(len(windows) + 1)]
        for room in rooms:
            room[HEAD - 1] = count
        assert ran(loop, stored, rooms)
        wanted = stored[1].float() - stored[0].float()
        assert int(rooms[-1][0]) == int(wanted.count_nonzero())
        for window, room in zip(windows, rooms, strict=False):
            (counts, between), (told, listed) = counted(room), found_in(wanted, window)
            assert counts == told, (window, count)
            assert np.array_equal(np.sort(between), np.sort(listed))


def test_what_there_is_no_room_for_is_not_listed() -> None:
    loop = changes((Sink("window", 2, word=0),), "BF16", [0, ENDLESS, 1])
    room = torch.zeros(HEAD + 10, dtype=torch.int32)
    room[HEAD - 1] = 10
    assert not ran(loop, entries(1000, "BF16"), [room])


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_stored_entries_keep_their_places(dtype: str) -> None:
    loop = changes((Sink("store", 2, dtype),), dtype, [])
    for count in COUNTS:
        stored = entries(count, dtype)
        made = torch.empty(count + PAD, dtype=torch_dtype(dtype))
        assert ran(loop, stored, [made])
        assert torch.equal(made[:count], (stored[1].float() - stored[0].float()).to(made.dtype))


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
@pytest.mark.parametrize("kind", ["store", "window"])
def test_an_entry_that_is_not_finite_is_noticed_wherever_it_is(dtype: str, kind: str) -> None:
    sink: dict[str, Any] = {"dtype": dtype} if kind == "store" else {"word": 0}
    loop = changes((Sink(kind, 2, **sink),), dtype, [bits(1.0), ENDLESS, 0])
    room = torch.zeros(4096, dtype=torch.int32)
    room[HEAD - 1] = 4000
    largest = torch.finfo(torch_dtype(dtype)).max
    for place in (0, 1, 15, 16, 40, 98, 99):
        for which in range(2):
            for value in (float("inf"), float("-inf"), float("nan")):
                stored = entries(100, dtype)
                stored[which][place] = value
                assert not ran(loop, stored, [room]), (place, which, value)
    stored = entries(100, dtype)
    stored[0][3] = stored[1][3] = largest
    assert ran(loop, stored, [room])
