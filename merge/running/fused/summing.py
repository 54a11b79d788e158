"""Sums of given terms over single pieces: for what is measured on a few entries of every tensor, by the same
terms each time.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merge.checkpoint.dtype import torch_dtype
from merge.kernels.reduce import piece_sums
from merge.planning.sizing import PIECE_ELEMENTS
from merge.running.fused.loop import Loop
from merge.running.fused.samples import in_memory
from merge.running.fused.source import Sink
from merge.running.fused.trace import Program, Tracer
from merge.running.places import Place

if TYPE_CHECKING:
    from merge.running.fused.loops import Loops

Terms = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""From entries of some inputs to float64 terms of the same shape, entry by entry."""
_SAMPLE = 777


@dataclass(frozen=True)
class Summing:
    """One loop for the sums of all terms over one piece."""

    loops: "Loops"
    loop: Loop
    sinks: Sequence[Sink]

    def sums(self, values: Sequence[Tensor]) -> list[float] | None:
        """What ``summed`` gives for these inputs; ``None`` where that must see to it."""
        flat = [value.reshape(-1) for value in values]
        return self.sums_at(in_memory(flat), flat[0].numel())

    def sums_at(self, places: Sequence[Place], count: int) -> list[float] | None:
        """The same of inputs that lie at these places."""
        if not 0 < count <= PIECE_ELEMENTS:
            return None
        rooms = (ctypes.c_double * len(self.loop.sinks))()
        begin = ctypes.addressof(rooms)
        into = [begin + 8 * place for place in range(len(self.loop.sinks))]
        if not self.loop.run(places, 0, count, into, self.loops.scratch(self.loop)):
            return None
        return [rooms[place] for place in self._order]

    @cached_property
    def _order(self) -> list[int]:
        """Where the sum of each term is found: equal terms are added up once."""
        return [self.loop.sinks.index(sink) for sink in self.sinks]

    def agrees(self, terms: Terms) -> bool:
        """Whether numbers such as models have are added up as the eager code does it."""
        generator = torch.Generator().manual_seed(0)
        values = [torch.randn(_SAMPLE, generator=generator) for _ in self.loop.dtypes]
        for place, value in enumerate(values):
            value[place :: len(values) + 1] = 0.0
        stored = [value.to(torch_dtype(name)) for value, name in zip(values, self.loop.dtypes, strict=True)]
        return self.sums(stored) == summed(terms([value.to(torch.float32) for value in stored]))


def summed(terms: Sequence[Tensor]) -> list[float]:
    """The sum of each of these float64 tensors of one length, in the order that is always kept."""
    count = terms[0].numel()
    if not count:
        return [0.0] * len(terms)
    table = torch.stack([term.reshape(-1) for term in terms])
    sums: list[float] = piece_sums(table, count).tolist()
    return sums


def traced(inputs: int, terms: Terms) -> tuple[Program, list[Sink]]:
    """The program of these terms, and where each goes."""
    tracer = Tracer()
    with tracer:
        found = terms([tracer.input(place) for place in range(inputs)])
    return tracer.program, [Sink("sum", tracer.node_of(term, "d")) for term in found]
