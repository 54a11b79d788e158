"""What the loops do to spans of one output: make its entries, and measure what its methods need."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merge.checkpoint.dtype import torch_dtype
from merge.contract.stats import Term
from merge.kernels.radix import HIGH_BINS, LOW_BINS
from merge.planning.outputs import OutputTensor
from merge.running.chain import Block, Chain
from merge.running.fused.loop import NOWHERE, Target
from merge.running.fused.notes import Notes
from merge.running.fused.ranked import AnyLoop
from merge.running.fused.samples import bits, in_memory, sample
from merge.running.fused.source import LEAST_COLUMNS, PAD, ROWS, WIDTHS, Sink
from merge.running.fused.trace import Untraceable
from merge.running.places import Place
from merge.running.tasks import Task

if TYPE_CHECKING:
    from merge.running.fused.loops import Loops

WRITE_SPAN = 1 << 21
MEASURE_SPAN = 1 << 21


@dataclass(frozen=True)
class Writing:
    """Makes spans of one output."""

    loops: "Loops"
    chain: Chain
    output: OutputTensor
    loop: AnyLoop

    def span(self, otherwise: int) -> int:
        """Entries at a time."""
        return self.loops.span(self.output, WRITE_SPAN, otherwise)

    def room(self, count: int) -> int:
        """Bytes of the memory that ``made`` can be given."""
        return (count + PAD) * WIDTHS[self.output.dtype]

    def made(
        self, first: int, count: int, room: Tensor | None = None, target: Target = NOWHERE
    ) -> Tensor | None:
        """The entries, rounded to the output's dtype, flat, in ``room`` or memory of this thread, and written
        to the ``target``; ``None`` where the eager code must see to it.
        """
        with self.loops.places(self.output, first, count) as places:
            return self._made(places, first, count, room, target)

    def _made(
        self,
        places: Sequence[Place],
        first: int,
        count: int,
        room: Tensor | None = None,
        target: Target = NOWHERE,
    ) -> Tensor | None:
        dtype = torch_dtype(self.output.dtype)
        out = self.loops.buffer("output", count + PAD, dtype) if room is None else room.view(dtype)
        into, scratch = (out.data_ptr(),), self.loops.scratch(self.loop)
        fine = self.loop.run(places, first, count, into, scratch, target=target)
        return out[:count] if fine else None

    def agrees(self) -> bool:
        """Whether a sample comes out as the eager code makes it."""
        stored, block = sample(self.chain, self.loop.dtypes, self.output, self.loops.known(self.output), 0)
        ours = self._made(in_memory(stored), 0, stored[0].numel())
        theirs = self.chain.compute(block).reshape(-1).to(torch_dtype(self.output.dtype))
        return ours is not None and torch.equal(bits(ours), bits(theirs))


@dataclass(frozen=True)
class Preparing:
    """Makes what the steps before the combining one leave of the task vectors."""

    loops: "Loops"
    chain: Chain
    output: OutputTensor
    loop: AnyLoop

    def made(self, places: Sequence[Place], first: int, count: int) -> list[Tensor] | None:
        """Entries of each source, in float32; ``None`` where the eager code must see to it."""
        rooms = [
            self.loops.buffer(f"prepared {place}", count + PAD, torch.float32)
            for place in range(len(self.loop.sinks))
        ]
        into = [room.data_ptr() for room in rooms]
        fine = self.loop.run(places, first, count, into, self.loops.scratch(self.loop))
        return [room[:count] for room in rooms] if fine else None

    def agrees(self) -> bool:
        """Whether a sample comes out as the eager code makes it."""
        known = self.loops.known(self.output)
        stored, block = sample(self.chain, self.loop.dtypes, self.output, known, 0)
        ours = self.made(in_memory(stored), 0, stored[0].numel())
        theirs = self.chain.prepared(block)
        return ours is not None and all(
            torch.equal(bits(a), bits(b.reshape(-1))) for a, b in zip(ours, theirs, strict=True)
        )


@dataclass(frozen=True)
class Measuring:
    """Measures spans for some tasks of one tensor."""

    loops: "Loops"
    chain: Chain
    output: OutputTensor
    tasks: Sequence[Task]
    sinks: Sequence[Sequence[Sink | None]]
    parts: Sequence[AnyLoop]

    def span(self, otherwise: int) -> int:
        """Entries at a time; a block where columns are added up, which gives long rows of sums."""
        by_columns = any(sink.kind == "columns" for loop in self.parts for sink in loop.sinks)
        return otherwise if by_columns else self.loops.span(self.output, MEASURE_SPAN, otherwise)

    def measure(self, first: int, count: int) -> list[list[Tensor]] | None:
        """What ``Chain.measure`` gives for these entries; ``None`` where the eager code must see to it."""
        with self.loops.places(self.output, first, count) as places:
            found = self._measured(places, first, count)
        if found is not None:
            self.loops.on_read(self.output, count)
        return found

    def _measured(self, places: Sequence[Place], first: int, count: int) -> list[list[Tensor]] | None:
        found: dict[Sink, Tensor] = {}
        for loop in self.parts:
            into = [room_for(sink, -(-count // loop.step)) for sink in loop.sinks]
            addresses = [room.data_ptr() for room in into]
            if not loop.run(places, first, count, addresses, self.loops.scratch(loop)):
                return None
            found |= {sink: counted(sink, room) for sink, room in zip(loop.sinks, into, strict=True)}
        nothing = torch.zeros(0, dtype=torch.int64)
        return [[nothing if sink is None else found[sink] for sink in each] for each in self.sinks]

    def agrees(self) -> bool:
        """Whether a sample comes out as the eager code measures it."""
        least, known = self.chain.piece + self.chain.piece // 3, self.loops.known(self.output)
        stored, block = sample(self.chain, self.parts[0].dtypes, self.output, known, least)
        ours = self._measured(in_memory(stored), 0, stored[0].numel())
        theirs = self.chain.measure(block, self.tasks)
        return ours is not None and all(
            torch.equal(bits(a), bits(b))
            for mine, yours in zip(ours, theirs, strict=True)
            for a, b in zip(mine, yours, strict=True)
        )


def written(notes: Notes, chain: Chain, block: Block) -> tuple[int, tuple[int, ...]]:
    """The nodes of the merged entries, and of what is left of the task vectors before they are combined."""
    merged = notes.node_of(chain.compute(block), "f")
    prepared = chain.prepared(block) if chain.prepares else ()
    return merged, tuple(notes.node_of(each, "f") for each in prepared)


def asked_of(output: OutputTensor, tasks: Sequence[Task]) -> tuple[Hashable, ...]:
    """What is measured for these tasks."""
    each = ((task.stage, task.position, id(task.stat), task.value is None) for task in tasks)
    return output.base is None, *each


def sink_of(notes: Notes, term: Term) -> Sink | None:
    if term.what == "nothing":
        return None
    if term.what == "sum":
        return Sink("sum", notes.node_of(term.value, "d"))
    if term.what == "rows":
        return Sink("sum", notes.node_of(term.value, "d"), size=ROWS)
    if term.what == "nonzero":
        return Sink("nonzero", notes.node_of(term.value))
    if term.what == "columns":
        columns = term.value.shape[1]
        if columns < LEAST_COLUMNS:
            raise Untraceable("few columns")
        notes.program.words.append(columns)
        word = len(notes.program.words) - 1
        return Sink("columns", notes.node_of(term.value, "d"), word=word, size=columns)
    node = notes.node_of(term.value, "f")
    if term.what == "high":
        return Sink("high", node)
    notes.program.words.append(term.bin)
    return Sink("low", node, word=len(notes.program.words) - 1)


def room_for(sink: Sink, pieces: int) -> Tensor:
    if sink.kind in ("sum", "columns"):
        return torch.empty(pieces * max(1, sink.size), dtype=torch.float64)
    size = {"high": HIGH_BINS, "low": LOW_BINS, "nonzero": 1}[sink.kind]
    return torch.zeros(size, dtype=torch.int32)


def counted(sink: Sink, room: Tensor) -> Tensor:
    if sink.kind in ("sum", "columns"):
        return room.view(-1, sink.size) if sink.size > 0 else room
    counts = room.to(torch.int64)
    return counts[0] if sink.kind == "nonzero" else counts
