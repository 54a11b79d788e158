"""Entries to try a loop on: stand-ins that are followed, and such numbers as models have."""

from collections.abc import Sequence

import torch
from torch import Tensor

from merge.checkpoint.dtype import torch_dtype
from merge.planning.outputs import OutputTensor
from merge.running.chain import Block, Chain
from merge.running.fused.notes import Notes
from merge.running.fused.trace import TINY
from merge.running.places import Place
from merge.running.statistics import OutputStatistics

_SAMPLE = 1000


def shape_of(chain: Chain) -> tuple[int, ...]:
    """What a method that works by rows is shown is one of them."""
    return (1, chain.columns) if chain.granularity == "row" else (TINY,)


def stand_in(notes: Notes, chain: Chain, output: OutputTensor, known: OutputStatistics) -> Block:
    """A tiny block whose tensors are followed, by notes for ``shape_of`` the chain."""
    count, based = len(chain.site.models), output.base is not None
    base = notes.input(0) if based else None
    sources = [notes.input(place + based) for place in range(count)]
    measured = [notes.input(count + based + place) for place in range(len(known.parts()))]
    lined_up = known.with_values(measured)
    return Block(0, notes.shape, base, sources, notes.draws, lined_up, aligned=notes.aligned)


def sample(
    chain: Chain, dtypes: Sequence[str], output: OutputTensor, known: OutputStatistics, least: int
) -> tuple[list[Tensor], Block]:
    """Entries such as models have, with equal ones, zeros and denormals: as stored, and as a block. What was
    measured on data is 0 to 1.
    """
    based, models = output.base is not None, len(dtypes) - len(known.parts())
    row = chain.whole if chain.granularity == "row" else 1
    count = min(-(-max(least, _SAMPLE) // row) * row, chain.entries)
    generator = torch.Generator().manual_seed(count)
    ours = torch.randn(count, generator=generator) * 0.02
    ours[::17] = 0.0
    ours[5::101] = 1e-39
    stored = []
    for place, name in enumerate(dtypes[:models]):
        moved = torch.randn(count, generator=generator) * 1e-3
        moved[place :: len(dtypes) + 2] = 0.0
        values = ours + (0.0 if based and place == 0 else moved)
        stored.append(values.to(torch_dtype(name)))
    for _ in known.parts():
        stored.append(torch.rand(count, generator=generator).sub_(0.1).clamp_(min=0))
    shape = chain.block_shape(count)
    wide = [values.to(torch.float32).view(shape) for values in stored]
    measured, sources = known.with_values(wide[models:]), wide[based:models]
    return stored, Block(0, shape, wide[0] if based else None, sources, statistics=measured)


def in_memory(stored: Sequence[Tensor]) -> list[Place]:
    return [Place(-1, 0, values.data_ptr(), values) for values in stored]


def bits(values: Tensor) -> Tensor:
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return values.contiguous().view(whole)
