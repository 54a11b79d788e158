"""Programs that need ranks within rows: one loop makes what is ranked, the ranks are found as ever, and
another loop reads them like one more input.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merge.fused.compiler import Built
from merge.fused.loop import NOWHERE, Loop, Target
from merge.fused.ordering import Room, ranks_of
from merge.fused.source import PAD, WIDTHS, Sink, used
from merge.fused.trace import RANKS, Node, Program, Untraceable
from merge.places import Place

TOGETHER = 1 << 17
"""Entries that are taken through both loops at a time, unless a row has more."""


@dataclass(frozen=True)
class RankedLoop:
    """Looks like a ``Loop``. ``columns`` are the entries of a row, ``piece`` those that stay together."""

    before: Loop
    after: Loop
    shared: tuple[bool, ...]
    columns: int
    piece: int
    room: Room
    ordering: Built | None

    @property
    def key(self) -> Any:
        """What stands for the code that is run."""
        return self.before.key, self.after.key

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """Of the second loop."""
        return self.after.sinks

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Of what is read."""
        return self.before.dtypes

    @property
    def step(self) -> int:
        """Of the second loop."""
        return self.after.step

    @property
    def scratch_bytes(self) -> int:
        """Enough for either."""
        return max(self.before.scratch_bytes, self.after.scratch_bytes)

    def run(
        self,
        places: Sequence[Place],
        first: int,
        count: int,
        into: Sequence[int],
        scratch: Tensor,
        target: Target = NOWHERE,
    ) -> bool:
        """As ``Loop.run``, over whole rows."""
        size = max(1, TOGETHER // self.piece) * self.piece
        for done in range(0, count, size):
            many = min(size, count - done)
            here = [_from(place, done * WIDTHS[d]) for place, d in zip(places, self.dtypes, strict=True)]
            ranked = [
                self.room(f"ranked {place}", size + PAD, torch.float32) for place in range(len(self.shared))
            ]
            if not self.before.run(here, first + done, many, [each.data_ptr() for each in ranked], scratch):
                return False
            ranks = [
                ranks_of(each[:many].view(-1, self.columns), shared, self.ordering, number, self.room)
                for number, (each, shared) in enumerate(zip(ranked, self.shared, strict=True))
            ]
            here += [Place(-1, 0, each.data_ptr(), each) for each in ranks]
            at = [self._moved(sink, address, done) for sink, address in zip(self.sinks, into, strict=True)]
            file = target
            if target.fd >= 0:
                file = Target(target.fd, target.offset + done * WIDTHS[self.sinks[0].dtype])
            if not self.after.run(here, first + done, many, at, scratch, target=file):
                return False
        return True

    def _moved(self, sink: Sink, address: int, done: int) -> int:
        """Where a sink goes on after so many entries: counts stay where they are."""
        if sink.kind == "store":
            return address + done * WIDTHS[sink.dtype]
        return address + done // self.step * ctypes.sizeof(ctypes.c_double) if sink.kind == "sum" else address


AnyLoop = Loop | RankedLoop


def rank_nodes(program: Program, sinks: Sequence[Sink]) -> list[int]:
    """The ranks that these sinks depend on."""
    return [node for node in used(program, sinks) if program.nodes[node].op == RANKS]


def halves(
    program: Program, nodes: Sequence[int], inputs: int
) -> tuple[tuple[Sink, ...], Program, tuple[bool, ...], int]:
    """What the first loop stores for these ranks, the program of the second, where they are inputs after so
    many others, whether equal entries share theirs, and the columns.
    """
    before = tuple(Sink("store", program.nodes[node].args[0], "F32") for node in nodes)
    if rank_nodes(program, before):
        raise Untraceable("ranks of ranks")
    made = list(program.nodes)
    for place, node in enumerate(nodes):
        made[node] = Node("input", (), "f", inputs + place)
    slots = [program.nodes[node].slot for node in nodes]
    shared = tuple(bool(program.words[slot + 1]) for slot in slots)
    return before, Program(made, program.numbers, program.words), shared, program.words[slots[0]]


def _from(place: Place, offset: int) -> Place:
    """What lies so many bytes later."""
    if place.fd >= 0:
        return place._replace(offset=place.offset + offset)
    return place._replace(address=place.address + offset)
