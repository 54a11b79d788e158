"""The compiled loops of a run: one for writing a tensor, some for what its methods measure.

A loop is used only after it gave the very bits of the eager code on a sample. Wherever something is unusual
(an entry that is not finite, a file that ends too early, a number beyond the output's dtype) it says so by
giving nothing, and the eager code, which knows the words for it, does that span again.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from merge.blocks import Buffers, Inputs, Place
from merge.chain import Block, Chain, Task
from merge.checkpoint.dtype import torch_dtype
from merge.contract.stats import Term
from merge.fused.compiler import Built, Compiler
from merge.fused.source import PAD, WIDTHS, Sink, block_of, piecewise, text
from merge.fused.trace import TINY, Program, Tracer, Untraceable
from merge.fused.windows import CHUNK, CHUNKS, MOST_BINS_TOGETHER, Window, Windows, window_of, window_sink
from merge.fused.windows import LEAST_ENTRIES as LEAST_SAMPLED
from merge.kernels.radix import HIGH_BINS, LOW_BINS
from merge.outputs import OutputTensor
from merge.sizing import PIECE_ELEMENTS
from merge.statistics import NOTHING, OutputStatistics

LEAST_ENTRIES = 1 << 17
"""Smaller tensors are not worth the writing down."""
LEAST_TOTAL = 1 << 24
"""Smaller jobs are not worth building anything."""
WRITE_SPAN = 1 << 19
MEASURE_SPAN = 1 << 22
_SAMPLE = 1000
M = TypeVar("M")
_COMPILER = Compiler()


@dataclass(frozen=True)
class Loop:
    """A built function with the numbers of one tensor's pass."""

    built: Built
    sinks: tuple[Sink, ...]
    dtypes: tuple[str, ...]
    numbers: Any
    words: Any
    step: int

    def run(
        self, places: Sequence[Place], first: int, count: int, into: Sequence[int], scratch: Tensor
    ) -> bool:
        """Runs over ``count`` entries, into sinks at these addresses; whether all went well."""
        many = len(places)
        status = self.built.run(
            (ctypes.c_int32 * many)(*(place.fd for place in places)),
            (ctypes.c_int64 * many)(*(place.offset for place in places)),
            (ctypes.c_void_p * many)(*(place.address for place in places)),
            self.numbers,
            self.words,
            first,
            count,
            self.step,
            (ctypes.c_void_p * len(into))(*into),
            scratch.data_ptr(),
        )
        return int(status) == 0

    @property
    def scratch_bytes(self) -> int:
        """Memory for one block of every input."""
        return (block_of(self.sinks) + PAD) * sum(WIDTHS[name] for name in self.dtypes)


class Loops:
    """Makes loops for the tensors of one run. ``entries`` is how many it merges in all; ``wanted`` is false
    where the arithmetic is not float32 on the CPU. ``on_read`` is told of every span that a loop has
    measured; ``reasons`` counts why tensors were left to the eager code. ``informed`` are statistics on data
    of outputs, by name, which the loops read like further inputs.
    """

    def __init__(
        self,
        inputs: Inputs,
        buffers: Buffers,
        entries: int,
        wanted: bool,
        on_read: Callable[[OutputTensor, int], None] = lambda *_: None,
        informed: Mapping[str, OutputStatistics] | None = None,
    ) -> None:
        self._inputs = inputs
        self._informed = informed or {}
        self._buffers = buffers
        self.on_read = on_read
        self._wanted = wanted and entries >= LEAST_TOTAL
        self._lock = threading.Lock()
        self._built: dict[Any, Built | None] = {}
        self._sound: dict[Built, bool] = {}
        self.reasons: dict[str, int] = {}
        self.made = 0

    def writing(self, chain: Chain, output: OutputTensor) -> "Writing | None":
        """The loop that makes the entries of an output, ready to be written."""
        return self._tried(self._writing, chain, output)

    def measuring(
        self, chain: Chain, output: OutputTensor, tasks: Sequence[Task], guess: bool = False
    ) -> "Measuring | Windows | None":
        """The loops that measure what these tasks need; with ``guess``, all rounds in one where a sample can
        tell what to look for.
        """
        found = self._tried(self._windows, chain, output, tasks) if guess else None
        return found or self._tried(self._measuring, chain, output, tasks)

    @contextmanager
    def places(self, output: OutputTensor, first: int, count: int) -> Iterator[list[Place]]:
        """Where the entries of each input lie: in its file where they are usable as such, else in memory."""
        known = [part.flat(first, count).contiguous() for part in self.known(output).parts()]
        with ExitStack() as stack:
            yield [
                *(
                    stack.enter_context(self._inputs.place(source, number, first, count))
                    for number, source in enumerate(output.inputs)
                ),
                *_in_memory(known),
            ]

    def known(self, output: OutputTensor) -> OutputStatistics:
        """What was measured on data for this output."""
        return self._informed.get(output.name, NOTHING)

    def span(self, output: OutputTensor, most: int, otherwise: int) -> int:
        """Entries at a time: ``otherwise`` where some input must be held in memory."""
        plain = all(self._inputs.stored(source) is not None for source in output.inputs)
        plain = plain and not self.known(output).parts()
        return most if plain else min(most, otherwise)

    def scratch(self, loop: Loop) -> Tensor:
        """This thread's memory for blocks of inputs."""
        return self._buffers.get("scratch", loop.scratch_bytes, torch.uint8)

    def buffer(self, use: str, entries: int, dtype: torch.dtype) -> Tensor:
        """This thread's memory for something else."""
        return self._buffers.get(use, entries, dtype)

    def _writing(self, chain: Chain, output: OutputTensor) -> "Writing":
        dtypes = self._dtypes(output)
        if output.dtype not in WIDTHS:
            raise Untraceable(output.dtype)
        tracer = Tracer()
        with tracer:
            merged = chain.compute(_stand_in(tracer, chain, output, self.known(output)))
        sink = Sink("store", tracer.node_of(merged, "f"), output.dtype)
        loop = self._loop(tracer.program, (sink,), dtypes, chain)
        made = Writing(self, chain, output, loop)
        self._prove(loop, made.agrees)
        return made

    def _measuring(self, chain: Chain, output: OutputTensor, tasks: Sequence[Task]) -> "Measuring":
        dtypes = self._dtypes(output)
        if not all(task.stat.in_terms() for task in tasks):
            raise Untraceable("a stat that is not told in terms")
        tracer = Tracer()
        with tracer:
            terms = chain.terms(_stand_in(tracer, chain, output, self.known(output)), tasks)
        sinks = [[_sink(tracer, term) for term in each] for each in terms]
        loops = []
        for summing in (False, True):
            chosen = [s for each in sinks for s in each if s is not None and (s.kind == "sum") is summing]
            if chosen:
                loops.append(self._loop(tracer.program, tuple(dict.fromkeys(chosen)), dtypes, chain))
        made = Measuring(self, chain, output, tasks, sinks, loops)
        for loop in loops:
            self._prove(loop, made.agrees)
        return made

    def _windows(self, chain: Chain, output: OutputTensor, tasks: Sequence[Task]) -> Windows:
        dtypes = self._dtypes(output)
        if chain.entries < LEAST_SAMPLED or any(task.shared or task.rounds_done for task in tasks):
            raise _Unfit
        tracer = Tracer()
        with tracer:
            pairs = chain.quantities(_stand_in(tracer, chain, output, self.known(output)), tasks)
            nodes = [[tracer.node_of(value, "f") for value in values] for _, values in pairs]
        ranks = []
        for task, each in zip(tasks, nodes, strict=True):
            wanted = task.stat.ranks_at(task.params, len(each), chain.entries)
            if wanted is None:
                raise _Unfit
            ranks.append(wanted)
        asked = [
            n for each, some in zip(nodes, ranks, strict=True) for n, r in zip(each, some, strict=True) if r
        ]
        counts = self._sampled(tracer.program, tuple(dict.fromkeys(asked)), dtypes, chain, output)
        windows, sinks = [], []
        for each, some in zip(nodes, ranks, strict=True):
            windows.append(
                [[_window(counts[n], r, chain.entries) for r in rs] for n, rs in zip(each, some, strict=True)]
            )
            sinks += [
                window_sink(node, window, tracer.program.words)
                for node, found in zip(each, windows[-1], strict=True)
                for window in found
            ]
        if sum(sink.size for sink in sinks) > MOST_BINS_TOGETHER * LOW_BINS:
            raise _Unfit
        loop = self._loop(tracer.program, tuple(sinks), dtypes, chain)
        made = Windows(self, chain, output, tasks, ranks, windows, loop)
        stored, block = _sample(chain, dtypes, output, self.known(output), 0)
        self._prove(loop, lambda: made.agrees(stored, block))
        return made

    def _sampled(
        self,
        program: Program,
        nodes: tuple[int, ...],
        dtypes: tuple[str, ...],
        chain: Chain,
        output: OutputTensor,
    ) -> dict[int, Tensor]:
        """Counts of the upper bits of these quantities on evenly spread entries."""
        loop = self._loop(program, tuple(Sink("high", node) for node in nodes), dtypes, chain)
        rooms = [torch.zeros(HIGH_BINS, dtype=torch.int32) for _ in nodes]
        for chunk in range(CHUNKS):
            first = (chain.entries - CHUNK) * chunk // (CHUNKS - 1)
            with self.places(output, first, CHUNK) as places:
                into = [room.data_ptr() for room in rooms]
                if not loop.run(places, first, CHUNK, into, self.scratch(loop)):
                    raise _Unfit
        return {node: room.to(torch.int64) for node, room in zip(nodes, rooms, strict=True)}

    def _tried(self, make: Callable[..., M], chain: Chain, *more: Any) -> M | None:
        """Whatever a method does with a stand-in but not with entries: the eager code decides."""
        if not self._wanted or not LEAST_ENTRIES <= chain.entries < 1 << 32 or chain.granularity == "tensor":
            return None
        try:
            return make(chain, *more)
        except _Unfit:
            return None
        except Exception as error:
            reason = str(error) or type(error).__name__
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
            return None

    def _dtypes(self, output: OutputTensor) -> tuple[str, ...]:
        found = tuple(self._inputs.stored(source) or "F32" for source in output.inputs)
        if not all(name in WIDTHS for name in found):
            raise Untraceable(" and ".join(found))
        return (*found, *("F32" for _ in self.known(output).parts()))

    def _loop(self, program: Program, sinks: tuple[Sink, ...], dtypes: tuple[str, ...], chain: Chain) -> Loop:
        step = chain.piece if piecewise(sinks) else block_of(sinks)
        if step > PIECE_ELEMENTS:
            raise Untraceable("pieces are too long")
        key = (tuple(program.nodes), sinks, dtypes)
        with self._lock:
            built = self._built[key] if key in self._built else _COMPILER.build(text(program, sinks, dtypes))
            self._built[key] = built
        if built is None:
            raise Untraceable(_COMPILER.reason)
        numbers = (ctypes.c_double * max(1, len(program.numbers)))(*program.numbers)
        words = (ctypes.c_uint32 * max(1, len(program.words)))(*program.words)
        return Loop(built, sinks, dtypes, numbers, words, step)

    def _prove(self, loop: Loop, agrees: Callable[[], bool]) -> None:
        """Refuses a loop that does not give the bits of the eager code."""
        with self._lock:
            if loop.built not in self._sound:
                self._sound[loop.built] = agrees()
            if not self._sound[loop.built]:
                raise Untraceable("the compiled loop gives other bits")
            self.made += 1


class _Unfit(Exception):
    """Another way is the usual one here."""


def _window(counts: Tensor, rank: int, entries: int) -> Window:
    found = window_of(counts, rank, entries)
    if found is None:
        raise _Unfit
    return found


@dataclass(frozen=True)
class Writing:
    """Makes spans of one output."""

    loops: Loops
    chain: Chain
    output: OutputTensor
    loop: Loop

    def span(self, otherwise: int) -> int:
        """Entries at a time."""
        return self.loops.span(self.output, WRITE_SPAN, otherwise)

    def made(self, first: int, count: int) -> Tensor | None:
        """The entries, rounded to the output's dtype, flat; ``None`` where the eager code must see to it."""
        with self.loops.places(self.output, first, count) as places:
            return self._made(places, first, count)

    def _made(self, places: Sequence[Place], first: int, count: int) -> Tensor | None:
        dtype = torch_dtype(self.output.dtype)
        out = self.loops.buffer("output", count + PAD, dtype)
        fine = self.loop.run(places, first, count, (out.data_ptr(),), self.loops.scratch(self.loop))
        return out[:count] if fine else None

    def agrees(self) -> bool:
        """Whether a sample comes out as the eager code makes it."""
        stored, block = _sample(self.chain, self.loop.dtypes, self.output, self.loops.known(self.output), 0)
        ours = self._made(_in_memory(stored), 0, stored[0].numel())
        theirs = self.chain.compute(block).reshape(-1).to(torch_dtype(self.output.dtype))
        return ours is not None and torch.equal(_bits(ours), _bits(theirs))


@dataclass(frozen=True)
class Measuring:
    """Measures spans for some tasks of one tensor."""

    loops: Loops
    chain: Chain
    output: OutputTensor
    tasks: Sequence[Task]
    sinks: Sequence[Sequence[Sink | None]]
    parts: Sequence[Loop]

    def span(self, otherwise: int) -> int:
        """Entries at a time."""
        return self.loops.span(self.output, MEASURE_SPAN, otherwise)

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
            into = [_room(sink, -(-count // loop.step)) for sink in loop.sinks]
            addresses = [room.data_ptr() for room in into]
            if not loop.run(places, first, count, addresses, self.loops.scratch(loop)):
                return None
            found |= {sink: _counted(sink, room) for sink, room in zip(loop.sinks, into, strict=True)}
        nothing = torch.zeros(0, dtype=torch.int64)
        return [[nothing if sink is None else found[sink].clone() for sink in each] for each in self.sinks]

    def agrees(self) -> bool:
        """Whether a sample comes out as the eager code measures it."""
        least, known = self.chain.piece + self.chain.piece // 3, self.loops.known(self.output)
        stored, block = _sample(self.chain, self.parts[0].dtypes, self.output, known, least)
        ours = self._measured(_in_memory(stored), 0, stored[0].numel())
        theirs = self.chain.measure(block, self.tasks)
        return ours is not None and all(
            torch.equal(_bits(a), _bits(b))
            for mine, yours in zip(ours, theirs, strict=True)
            for a, b in zip(mine, yours, strict=True)
        )


def _stand_in(tracer: Tracer, chain: Chain, output: OutputTensor, known: OutputStatistics) -> Block:
    """A tiny block whose tensors are followed."""
    count, based = len(chain.site.models), output.base is not None
    base = tracer.input(0) if based else None
    sources = [tracer.input(place + based) for place in range(count)]
    measured = [tracer.input(count + based + place) for place in range(len(known.parts()))]
    return Block(0, (TINY,), base, sources, tracer.draws, known.with_values(measured))


def _sink(tracer: Tracer, term: Term) -> Sink | None:
    if term.what == "nothing":
        return None
    if term.what == "sum":
        return Sink("sum", tracer.node_of(term.value, "d"))
    if term.what == "nonzero":
        return Sink("nonzero", tracer.node_of(term.value))
    node = tracer.node_of(term.value, "f")
    if term.what == "high":
        return Sink("high", node)
    tracer.program.words.append(term.bin)
    return Sink("low", node, word=len(tracer.program.words) - 1)


def _room(sink: Sink, pieces: int) -> Tensor:
    if sink.kind == "sum":
        return torch.empty(pieces, dtype=torch.float64)
    size = {"high": HIGH_BINS, "low": LOW_BINS, "nonzero": 1}[sink.kind]
    return torch.zeros(size, dtype=torch.int32)


def _counted(sink: Sink, room: Tensor) -> Tensor:
    if sink.kind == "sum":
        return room
    counts = room.to(torch.int64)
    return counts[0] if sink.kind == "nonzero" else counts


def _sample(
    chain: Chain, dtypes: Sequence[str], output: OutputTensor, known: OutputStatistics, least: int
) -> tuple[list[Tensor], Block]:
    """Entries such as models have, with equal ones, zeros and denormals: as stored, and as a block. What was
    measured on data is 0 to 1.
    """
    based, models = output.base is not None, len(dtypes) - len(known.parts())
    row = chain.columns if chain.granularity == "row" else 1
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


def _in_memory(stored: Sequence[Tensor]) -> list[Place]:
    return [Place(-1, 0, values.data_ptr(), values) for values in stored]


def _bits(values: Tensor) -> Tensor:
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return values.contiguous().view(whole)
