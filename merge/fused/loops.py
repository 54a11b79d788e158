"""The compiled loops of a run: one for writing a tensor, some for what its methods measure.

A loop is used only after it gave the very bits of the eager code on a sample. Wherever something is unusual
(an entry that is not finite, a file that ends too early, a number beyond the output's dtype) it says so by
giving nothing, and the eager code, which knows the words for it, does that span again.
"""

import ctypes
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from merge.blocks import Buffers, Inputs, Place
from merge.chain import Chain, Task
from merge.checkpoint.dtype import safetensors_name
from merge.fused.compiler import Built, Compiler
from merge.fused.loop import Loop
from merge.fused.ordering import ORDERING
from merge.fused.ranked import AnyLoop, RankedLoop, halves, rank_nodes
from merge.fused.samples import in_memory, sample, shape_of, stand_in
from merge.fused.source import WIDTHS, Sink, block_of, piecewise, text
from merge.fused.spans import Measuring, Writing, sink_of
from merge.fused.summing import Summing, Terms, traced
from merge.fused.trace import Program, Tracer, Untraceable
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
M = TypeVar("M")
_COMPILER = Compiler()


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
        self._sound: dict[Any, bool] = {}
        self._summing: dict[Hashable, Summing | None] = {}
        self._summing_lock = threading.Lock()
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

    def summing(self, key: Hashable, dtypes: tuple[str, ...], terms: Terms) -> Summing | None:
        """The loop that adds up these terms of inputs of these dtypes; ``key`` stands for the terms."""
        if not self._wanted:
            return None
        with self._summing_lock:
            if (key, dtypes) not in self._summing:
                self._summing[key, dtypes] = self._counted(self._sums, dtypes, terms)
            return self._summing[key, dtypes]

    def sums_beside(
        self, key: Hashable, terms: Terms, output: OutputTensor, first: int, made: Tensor
    ) -> list[float] | None:
        """The sums of these terms of what an output is made from, from entry ``first`` on, and of what was
        ``made`` of it, all as they are stored; ``None`` where the eager code must see to it.
        """
        stored = tuple(self._inputs.stored(source) or "F32" for source in output.inputs)
        loop = self.summing(key, (*stored, safetensors_name(made.dtype)), terms)
        if loop is None or self.known(output).parts():
            return None
        with self.places(output, first, made.numel()) as places:
            return loop.sums_at([*places, *in_memory([made])], made.numel())

    @contextmanager
    def places(self, output: OutputTensor, first: int, count: int) -> Iterator[list[Place]]:
        """Where the entries of each input lie: in its file where they are usable as such, else in memory."""
        known = [part.flat(first, count).contiguous() for part in self.known(output).parts()]
        with self._inputs.places(output.inputs, first, count) as found:
            yield [*found, *in_memory(known)]

    def known(self, output: OutputTensor) -> OutputStatistics:
        """What was measured on data for this output."""
        return self._informed.get(output.name, NOTHING)

    def span(self, output: OutputTensor, most: int, otherwise: int) -> int:
        """Entries at a time: ``otherwise`` where some input must be held in memory."""
        plain = all(self._inputs.stored(source) is not None for source in output.inputs)
        plain = plain and not self.known(output).parts()
        return most if plain else min(most, otherwise)

    def scratch(self, loop: AnyLoop) -> Tensor:
        """This thread's memory for blocks of inputs."""
        return self._buffers.get("scratch", loop.scratch_bytes, torch.uint8)

    def buffer(self, use: str, entries: int, dtype: torch.dtype) -> Tensor:
        """This thread's memory for something else."""
        return self._buffers.get(use, entries, dtype)

    def _writing(self, chain: Chain, output: OutputTensor) -> "Writing":
        dtypes = self._dtypes(output)
        if output.dtype not in WIDTHS:
            raise Untraceable(output.dtype)
        tracer = Tracer(shape_of(chain))
        with tracer:
            merged = chain.compute(stand_in(tracer, chain, output, self.known(output)))
        sink = Sink("store", tracer.node_of(merged, "f"), output.dtype)
        loop = self._loop(tracer.program, (sink,), dtypes, chain.piece)
        made = Writing(self, chain, output, loop)
        self._prove(loop, made.agrees)
        return made

    def _measuring(self, chain: Chain, output: OutputTensor, tasks: Sequence[Task]) -> "Measuring":
        dtypes = self._dtypes(output)
        if not all(task.stat.in_terms() for task in tasks):
            raise Untraceable("a stat that is not told in terms")
        tracer = Tracer(shape_of(chain))
        with tracer:
            terms = chain.terms(stand_in(tracer, chain, output, self.known(output)), tasks)
        sinks = [[sink_of(tracer, term) for term in each] for each in terms]
        loops = []
        for summing in (False, True):
            chosen = [s for each in sinks for s in each if s is not None and (s.kind == "sum") is summing]
            if chosen:
                loops.append(self._loop(tracer.program, tuple(dict.fromkeys(chosen)), dtypes, chain.piece))
        made = Measuring(self, chain, output, tasks, sinks, loops)
        for loop in loops:
            self._prove(loop, made.agrees)
        return made

    def _windows(self, chain: Chain, output: OutputTensor, tasks: Sequence[Task]) -> Windows:
        dtypes = self._dtypes(output)
        if chain.entries < LEAST_SAMPLED or any(task.shared or task.rounds_done for task in tasks):
            raise _Unfit
        tracer = Tracer(shape_of(chain))
        with tracer:
            pairs = chain.quantities(stand_in(tracer, chain, output, self.known(output)), tasks)
            nodes = [[tracer.node_of(value, "f") for value in values] for _, values in pairs]
        asked = [
            node
            for task, each in zip(tasks, nodes, strict=True)
            for node, wanted in zip(each, _ranks(task, [chain.entries] * len(each)), strict=True)
            if wanted
        ]
        if rank_nodes(tracer.program, [Sink("high", node) for node in asked]):
            raise _Unfit  # ranks take whole rows
        counts = self._sampled(tracer.program, tuple(dict.fromkeys(asked)), dtypes, chain, output)
        windows, sinks = [], []
        for task, each in zip(tasks, nodes, strict=True):
            windows.append(_windows_of(task, [counts.get(node) for node in each], chain.entries))
            sinks += [
                window_sink(node, window, tracer.program.words)
                for node, found in zip(each, windows[-1], strict=True)
                for window in found
            ]
            sinks += [Sink("nonzero", node) for node in each if task.stat.ranks_nonzero]
        if sum(sink.size for sink in sinks) > MOST_BINS_TOGETHER * LOW_BINS:
            raise _Unfit
        loop = self._loop(tracer.program, tuple(sinks), dtypes, chain.piece)
        made = Windows(self, chain, output, tasks, windows, loop)
        stored, block = sample(chain, dtypes, output, self.known(output), 0)
        self._prove(loop, lambda: made.agrees(stored, block))
        return made

    def _sums(self, dtypes: tuple[str, ...], terms: Terms) -> Summing:
        program, sinks = traced(len(dtypes), terms)
        loop = self._plain(program, tuple(dict.fromkeys(sinks)), dtypes, PIECE_ELEMENTS)
        made = Summing(self, loop, sinks)
        self._prove(loop, lambda: made.agrees(terms))
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
        loop = self._loop(program, tuple(Sink("high", node) for node in nodes), dtypes, chain.piece)
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
        found = self._counted(make, chain, *more)
        self.made += found is not None
        return found

    def _counted(self, make: Callable[..., M], *of: Any) -> M | None:
        try:
            return make(*of)
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

    def _loop(
        self, program: Program, sinks: tuple[Sink, ...], dtypes: tuple[str, ...], piece: int
    ) -> AnyLoop:
        nodes = rank_nodes(program, sinks)
        if not nodes:
            return self._plain(program, sinks, dtypes, piece)
        first, rest, shared, columns = halves(program, nodes, len(dtypes))
        before = self._plain(program, first, dtypes, piece)
        after = self._plain(rest, sinks, (*dtypes, *("F32" for _ in nodes)), piece)
        ordering = _COMPILER.build(ORDERING)
        return RankedLoop(before, after, shared, columns, piece, self.buffer, ordering)

    def _plain(self, program: Program, sinks: tuple[Sink, ...], dtypes: tuple[str, ...], piece: int) -> Loop:
        step = piece if piecewise(sinks) else block_of(sinks)
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

    def _prove(self, loop: AnyLoop, agrees: Callable[[], bool]) -> None:
        """Refuses a loop that does not give the bits of the eager code."""
        with self._lock:
            if loop.key not in self._sound:
                self._sound[loop.key] = agrees()
            if not self._sound[loop.key]:
                raise Untraceable("the compiled loop gives other bits")


class _Unfit(Exception):
    """Another way is the usual one here."""


def _ranks(task: Task, filled: Sequence[int]) -> list[tuple[int, ...]]:
    wanted = task.stat.ranks_at(task.params, filled)
    if wanted is None:
        raise _Unfit
    return wanted


def _windows_of(task: Task, counts: Sequence[Tensor | None], entries: int) -> list[list[Window]]:
    """For every quantity of a task, by the counts of a sample, a window for each rank that is wanted."""
    filled, doubt = [entries] * len(counts), 1.0
    if task.stat.ranks_nonzero:
        doubt = 2.0
        filled = [
            entries if each is None else entries - int(entries * int(each[0]) / int(each.sum()))
            for each in counts
        ]
    found: list[list[Window]] = []
    for each, ranks in zip(counts, _ranks(task, filled), strict=True):
        windows = [None if each is None else window_of(each, rank, entries, doubt) for rank in ranks]
        found.append([window for window in windows if window is not None])
        if len(found[-1]) < len(windows):
            raise _Unfit
    return found
