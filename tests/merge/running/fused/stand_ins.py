"""In place of a run: tensors in memory for compiled loops, and the eager code beside them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from merge.checkpoint.dtype import safetensors_name
from merge.contract.groups import Site
from merge.planning.outputs import Input, OutputTensor
from merge.running.chain import Block, Chain
from merge.running.fused.loops import Loops
from merge.running.places import Place
from merge.running.statistics import NOTHING, OutputStatistics
from tests.merge.whole import bound

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


class Memory:
    """In place of files: entries that lie in memory."""

    adapters = ()

    def __init__(self, stored: Sequence[Tensor]) -> None:
        self.held = list(stored)

    def lying(self, inputs: Sequence[Input]) -> "Memory":
        return self

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(safetensors_name(each.dtype) for each in self.held)

    in_files = True

    @contextmanager
    def at(self, first: int, count: int, *, few: bool = False) -> Iterator[list[Place]]:
        yield places(self.held, first)


def output_of(shape: tuple[int, ...], stored: Sequence[Tensor], based: bool, dtype: str) -> OutputTensor:
    inputs = tuple(Input(str(place), "w") for place in range(len(stored)))
    weights = (1.0, 0.5, 2.0)[: len(stored) - based]
    return OutputTensor("w", dtype, shape, "linear", 0, "method", (), weights, inputs)


def entries(shape: tuple[int, ...], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """A base and sources near it, with zeros of both signs, denormals and entries that do not differ."""
    generator = torch.Generator().manual_seed(11)
    count = torch.Size(shape).numel()
    base = torch.randn(count, generator=generator)
    base[::13] = 0.0
    base[3::29] = 3e-40
    base[4::31] = -2e-6
    found = [base]
    for place in range(1, len(dtypes)):
        moved = torch.randn(count, generator=generator) * 0.05
        moved[place :: len(dtypes) + 1] = 0.0
        found.append(base + moved)
    return [values.to(dtype) for values, dtype in zip(found, dtypes, strict=True)]


def chain_of(steps: Any, shape: tuple[int, ...], count: int) -> Chain:
    site = Site("w", "linear", shape, tuple("abc"[:count]))
    return Chain(site, bound(steps, count), (1.0, 0.5, 2.0)[:count], 7)


def places(stored: Sequence[Tensor], first: int) -> list[Place]:
    return [Place(-1, 0, values[first:].data_ptr(), values) for values in stored]


def block_of(
    chain: Chain,
    stored: Sequence[Tensor],
    based: bool,
    first: int,
    count: int,
    known: OutputStatistics = NOTHING,
) -> Block:
    shape = chain.block_shape(count)
    wide = [values[first : first + count].to(F32).view(shape) for values in stored]
    base, sources = (wide[0], wide[1:]) if based else (None, wide)
    return Block(first, shape, base, sources, statistics=known.at(first, shape, wide[0]))


def bits(values: Tensor) -> Tensor:
    return values.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def lying(stored: Sequence[Tensor], known: OutputStatistics, first: int) -> list[Place]:
    """Where the entries of the models lie, and of what was measured on data."""
    return places([*stored, *(part.flat(0, stored[0].numel()).contiguous() for part in known.parts())], first)


def measure_both(
    made: Loops,
    chain: Chain,
    output: OutputTensor,
    stored: list[Tensor],
    based: bool,
    level: int,
    known: OutputStatistics = NOTHING,
) -> None:
    """One round of every stat that is due, by both ways; leaves their values behind."""
    tasks = [task for task in chain.tasks if task.due(level)]
    if not tasks:
        return
    measuring = made.measuring(chain, output, tasks)
    assert measuring is not None or chain.granularity == "row", made.reasons
    parts = [task.stat.part() for task in tasks]
    for first, size in chain.spans(chain.piece):
        theirs = chain.measure(block_of(chain, stored, based, first, size, known), tasks)
        if measuring is not None:
            ours = measuring._measured(lying(stored, known, first), first, size)
            assert ours is not None
            for mine, yours in zip(ours, theirs, strict=True):
                assert all(torch.equal(bits(a), bits(b)) for a, b in zip(mine, yours, strict=True))
        for part, added in zip(parts, theirs, strict=True):
            part.add(first // chain.piece, added)
    for task, part in zip(tasks, parts, strict=True):
        task.so_far = task.stat.close(part, task.params, chain.entries, task.so_far)
        task.rounds_done += 1
