"""Programs that need ranks within rows: one loop makes what is ranked, the ranks are found, and another loop
reads them like one more input.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from merge.running.fused.compiler import Built
from merge.running.fused.loop import NOWHERE, Loop, Target, packed
from merge.running.fused.ordering import COLUMN_BYTES, DESK_BYTES, Room, Task, whole
from merge.running.fused.source import PAD, WIDTHS, Sink, piecewise, used
from merge.running.fused.trace import RANKS, Node, Program, Untraceable
from merge.running.places import Place

TOGETHER = 1 << 14
"""Entries that are taken through both loops at a time, unless a row or what is summed has more."""


@dataclass(frozen=True)
class RankedLoop:
    """Looks like a ``Loop``. ``columns`` are the entries of a row, ``piece`` those that are summed as one."""

    before: Loop
    after: Loop
    shared: tuple[bool, ...]
    columns: int
    piece: int
    room: Room
    ordering: Built | None

    def __post_init__(self) -> None:
        if self.ordering is None:
            raise Untraceable("ranks could not be built")

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
        assert self.ordering is not None
        _held, (fds, offsets, addresses, sinks) = packed(places, into, target)
        status = self.ordering.run(
            fds,
            offsets,
            addresses,
            ctypes.addressof(self._task),
            self.room("ranked", self._room_bytes, torch.uint8).data_ptr(),
            first,
            count,
            self._together,
            sinks,
            scratch.data_ptr(),
        )
        return int(status) == 0

    @property
    def _together(self) -> int:
        least = self.piece if piecewise(self.sinks) else self.columns
        return max(1, TOGETHER // least) * least

    @property
    def _room_bytes(self) -> int:
        each = sum(WIDTHS[name] for name in (*self.dtypes, *("F32" for _ in self.shared)))
        return (self._together + PAD) * each + DESK_BYTES + COLUMN_BYTES * self.columns

    @cached_property
    def _task(self) -> Task:
        halves = (self.before, self.after)
        takes = [_bytes(sink, self.step) for sink in self.sinks]
        return Task(
            loops=(ctypes.c_void_p * 2)(
                *(ctypes.cast(each.built.run, ctypes.c_void_p).value for each in halves)
            ),
            numbers=(ctypes.c_void_p * 2)(*(ctypes.addressof(each.numbers) for each in halves)),
            words=(ctypes.c_void_p * 2)(*(ctypes.addressof(each.words) for each in halves)),
            steps=whole([each.step << 32 | each.step for each in halves]),
            inputs=len(self.dtypes),
            ranked=len(self.shared),
            columns=self.columns,
            sinks=len(self.sinks),
            widths=whole([WIDTHS[name] for name in self.dtypes]),
            shared=whole(self.shared),
            bytes=whole([size for size, _ in takes]),
            entries=whole([entries for _, entries in takes]),
        )


def _bytes(sink: Sink, step: int) -> tuple[int, int]:
    """How many bytes a sink takes for each so many entries: counts stay where they are."""
    if sink.kind == "store":
        return WIDTHS[sink.dtype], 1
    return (ctypes.sizeof(ctypes.c_double) if sink.kind == "sum" else 0), step


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
