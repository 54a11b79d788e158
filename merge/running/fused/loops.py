"""The compiled loops of a run: one for writing a tensor, some for what its methods measure.

A loop is used only after it gave the very bits of the eager code on a sample. Wherever something is unusual
(an entry that is not finite, a file that ends too early, a number beyond the output's dtype) it says so by
giving nothing, and the eager code, which knows the words for it, does that span again.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial as bound
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from merge.checkpoint.digests import Engine, Plain
from merge.checkpoint.dtype import safetensors_name
from merge.contract.stats import Stat
from merge.kernels.radix import MAGNITUDE
from merge.planning.outputs import OutputTensor
from merge.planning.sizing import PIECE_ELEMENTS
from merge.running.blocks import Buffers, Inputs
from merge.running.chain import Block, Chain
from merge.running.fused.changes import changes
from merge.running.fused.compiler import Compiler
from merge.running.fused.lanes import engine
from merge.running.fused.memo import Traces
from merge.running.fused.notes import Notes
from merge.running.fused.products import products
from merge.running.fused.proven import Proven
from merge.running.fused.ranked import AnyLoop, rank_nodes
from merge.running.fused.samples import in_memory, stand_in
from merge.running.fused.source import PAD, ROWS, WIDTHS, Sink, piecewise
from merge.running.fused.spans import Measuring, Preparing, Writing, asked_of, sink_of, written
from merge.running.fused.summing import Summing, Terms, traced
from merge.running.fused.trace import Program, Untraceable
from merge.running.fused.windows import (
    CHUNK,
    LOTS,
    Bits,
    Sought,
    Unfit,
    Windows,
    ranks_wanted,
    sample_size,
    sought_for,
)
from merge.running.fused.windows import LEAST_ENTRIES as LEAST_SAMPLED
from merge.running.places import Lying, Place
from merge.running.statistics import NOTHING, OutputStatistics
from merge.running.tasks import Task

LEAST_ENTRIES = 1 << 17
"""Smaller tensors are not worth the writing down."""
MOST_COLUMNS = PIECE_ELEMENTS
"""Of longer rows the stand-ins, which are kept, would take more memory than the entries at hand."""
LEAST_TOTAL = 1 << 24
"""Smaller jobs are not worth building anything."""
Quantities = tuple[Program, Sequence[Sequence[int]]]
"""What tasks are measured on: nodes of a program, by task."""
M = TypeVar("M")
_COMPILER = Compiler()


class Loops:
    """Makes loops for the tensors of one run. ``entries`` is how many it merges in all; ``wanted`` is false
    where the arithmetic is not float32 on the CPU. ``on_read`` is told of every span that a loop has
    measured; ``reasons`` counts why tensors were left to the eager code. ``informed`` are statistics on data
    of outputs, by name, which the loops read like further inputs. ``hashing`` is for what is written,
    ``changing`` for what masks of bundles change, ``multiplying`` for what factors of adapters do.
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
        self.hashing: Engine = engine(_COMPILER) if entries >= LEAST_TOTAL else Plain()
        adapters = inputs.adapters if self._wanted else []
        self.changing = changes(_COMPILER) if any(each.masked for each in adapters) else None
        self.multiplying = products(_COMPILER) if any(each.pairs for each in adapters) else None
        self._proven = Proven(_COMPILER, buffers)
        self._summing: dict[Hashable, Summing | None] = {}
        self._summing_lock = threading.Lock()
        self._traces = Traces()
        self._prepared: dict[str, Preparing | None] = {}
        self._lie: dict[str, Lying] = {}
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
        self, key: Hashable, terms: Terms, output: OutputTensor, first: int, made: Tensor, *, prepared: bool
    ) -> list[float] | None:
        """The sums of these terms of what an output is made from, from entry ``first`` on, and of what was
        ``made`` of it, all as they are stored, and where that is asked for, of what steps before the
        combining one leave of the task vectors; ``None`` where the eager code must see to it.
        """
        stored = self.lying(output).dtypes
        preparing = self._prepared.get(output.name) if prepared else None
        if prepared and preparing is None:
            return None
        more = ("F32",) * (0 if preparing is None else len(preparing.loop.sinks))
        loop = self.summing(key, (*stored, safetensors_name(made.dtype), *more), terms)
        if loop is None or self.known(output).parts():
            return None
        with self.places(output, first, made.numel()) as places:
            left = [] if preparing is None else preparing.made(places, first, made.numel())
            if left is None:
                return None
            return loop.sums_at([*places, *in_memory([made, *left])], made.numel())

    @contextmanager
    def places(
        self, output: OutputTensor, first: int, count: int, *, few: bool = False
    ) -> Iterator[list[Place]]:
        """Where the entries of each input lie: in its file where they are usable as such, else in memory;
        with ``few`` only some of them are read.
        """
        parts = self.known(output).parts()
        with self.lying(output).at(first, count, few=few) as found:
            if parts:
                found += in_memory([part.flat(first, count).contiguous() for part in parts])
            yield found

    def known(self, output: OutputTensor) -> OutputStatistics:
        """What was measured on data for this output."""
        return self._informed.get(output.name, NOTHING)

    def span(self, output: OutputTensor, most: int, otherwise: int) -> int:
        """Entries at a time, four times ``otherwise`` at most where some input must be held in memory: the
        eager code holds each as often.
        """
        return most if self._in_files(output) else min(most, 4 * otherwise)

    def _in_files(self, output: OutputTensor) -> bool:
        return self.lying(output).in_files and not self.known(output).parts()

    def lying(self, output: OutputTensor) -> Lying:
        """How its inputs are come by."""
        found = self._lie.get(output.name)
        if found is None:
            found = self._lie[output.name] = self._inputs.lying(output.inputs)
        return found

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
        fresh = bool(chain.tasks or self.known(output).parts())
        block = bound(stand_in, chain=chain, output=output, known=self.known(output))
        program, (merged, prepared) = self._traces.get(
            ("write", output.base is None), chain, block, written, fresh=fresh
        )
        loop = self._proven.loop(program, (Sink("store", merged, output.dtype),), dtypes, chain.piece)
        made = Writing(self, chain, output, loop)
        self._proven.prove(loop, made.agrees)
        if prepared:
            self._prepared[output.name] = self._counted(self._preparing, made, program, prepared)
        return made

    def _preparing(self, writing: "Writing", program: Program, nodes: Sequence[int]) -> Preparing:
        sinks = tuple(Sink("store", node, "F32") for node in nodes)
        loop = self._proven.loop(program, sinks, writing.loop.dtypes, writing.chain.piece)
        made = Preparing(self, writing.chain, writing.output, loop)
        self._proven.prove(loop, made.agrees)
        return made

    def _measuring(self, chain: Chain, output: OutputTensor, tasks: Sequence[Task]) -> "Measuring":
        dtypes = self._dtypes(output)
        if not all(task.stat.in_terms() for task in tasks):
            raise Untraceable("a stat that is not told in terms")

        def sunk(notes: Notes, chain: Chain, block: Block) -> list[list[Sink | None]]:
            return [[sink_of(notes, term) for term in each] for each in chain.terms(block, tasks)]

        block = bound(stand_in, chain=chain, output=output, known=self.known(output))
        what = ("measure", *asked_of(output, tasks))
        program, sinks = self._traces.get(what, chain, block, sunk, fresh=self._fresh(chain, output))
        loops = []
        known = dict.fromkeys(sink for each in sinks for sink in each if sink is not None)
        for kind, rows in ((False, False), ("sum", False), ("sum", True), ("columns", False)):
            own = [s for s in known if (piecewise((s,)) and s.kind, s.size == ROWS) == (kind, rows)]
            if own:
                piece = chain.columns if rows else chain.piece
                loops.append(self._proven.loop(program, tuple(own), dtypes, piece))
        made = Measuring(self, chain, output, tasks, sinks, loops)
        for loop in loops:
            self._proven.prove(loop, made.agrees)
        return made

    def sampled(
        self, chain: Chain, output: OutputTensor, tasks: Sequence[Task], size: int, lot: int
    ) -> list[list[Bits]] | None:
        """Bits of the magnitudes that each task ranks, by quantity, of about ``size`` entries: evenly spread
        lots of so many.
        """

        def make(chain: Chain) -> list[list[Bits]]:
            found = self._sampled(self._quantities(chain, output, tasks), chain, output, size, lot)
            return [[bits.copy() for bits in each] for each in found]

        return self._tried(make, chain)

    def seeking(
        self, chain: Chain, output: OutputTensor, tasks: Sequence[Task], sought: Sequence[Sought]
    ) -> Windows | None:
        """The loop that looks for what these tasks seek."""

        def make(chain: Chain) -> Windows:
            return self._seeking(self._quantities(chain, output, tasks), chain, output, tasks, sought)

        return self._tried(make, chain)

    def _windows(self, chain: Chain, output: OutputTensor, tasks: Sequence[Task]) -> Windows:
        if chain.entries < LEAST_SAMPLED or any(task.shared or task.rounds_done for task in tasks):
            raise Unfit
        if any(type(task.stat).ranks_at is Stat.ranks_at for task in tasks):
            raise Unfit
        entries, quantities = chain.entries, self._quantities(chain, output, tasks)
        for task, each in zip(tasks, quantities[1], strict=True):
            ranks_wanted(task, [entries] * len(each))
        samples = self._sampled(quantities, chain, output, sample_size(entries), CHUNK)
        sought = [sought_for(task, bits, entries) for task, bits in zip(tasks, samples, strict=True)]
        return self._seeking(quantities, chain, output, tasks, sought)

    def _quantities(self, chain: Chain, output: OutputTensor, tasks: Sequence[Task]) -> Quantities:
        """What these tasks are measured on, as nodes by task."""

        def ranked(notes: Notes, chain: Chain, block: Block) -> list[list[int]]:
            return [
                [notes.node_of(value, "f") for value in values]
                for _, values in chain.quantities(block, tasks)
            ]

        block = bound(stand_in, chain=chain, output=output, known=self.known(output))
        return self._traces.get(
            asked_of(output, tasks), chain, block, ranked, fresh=self._fresh(chain, output)
        )

    def _seeking(
        self,
        quantities: Quantities,
        chain: Chain,
        output: OutputTensor,
        tasks: Sequence[Task],
        sought: Sequence[Sought],
    ) -> Windows:
        program, nodes = quantities
        pairs = zip(nodes, sought, strict=True)
        sinks = tuple(sink for each, seek in pairs for sink in seek.sinks(each, program.words))
        loop = self._proven.loop(program, sinks, self._dtypes(output), chain.piece)
        made = Windows(self, chain, output, tasks, sought, loop)
        self._proven.prove(loop, made.agrees)
        return made

    def _fresh(self, chain: Chain, output: OutputTensor) -> bool:
        """Whether what is measured may depend on what was."""
        measured = any(task.measured or task.value is not None for task in chain.tasks)
        return measured or bool(self.known(output).parts())

    def _sampled(
        self, quantities: Quantities, chain: Chain, output: OutputTensor, size: int, lot: int
    ) -> list[list[Bits]]:
        """In memory that this thread keeps."""
        program, nodes = quantities
        distinct = tuple(dict.fromkeys(node for each in nodes for node in each))
        sinks = tuple(Sink("store", node, "F32") for node in distinct)
        if rank_nodes(program, sinks):
            raise Unfit  # ranks take whole rows
        loop = self._proven.plain(program, sinks, self._dtypes(output), chain.piece)
        at_once = self._in_files(output)
        lot = min(lot if at_once else max(lot, size // LOTS), chain.entries)
        lots = max(1, size // lot)
        stride = (chain.entries - lot) // max(1, lots - 1)
        values = [self.buffer(f"sample {at}", lots * lot + PAD, torch.float32) for at in range(len(sinks))]
        for number in range(1 if at_once else lots):
            into = [value.data_ptr() + number * lot * WIDTHS["F32"] for value in values]
            first, count, apart = (0, lots * lot, (lot, stride)) if at_once else (number * stride, lot, None)
            with self.places(output, first, chain.entries if at_once else lot, few=True) as places:
                if not loop.run(places, first, count, into, self.scratch(loop), apart):
                    raise Unfit
        found = {}
        for node, value in zip(distinct, values, strict=True):
            found[node] = value[: lots * lot].numpy().view(np.int32)
            np.bitwise_and(found[node], MAGNITUDE, out=found[node])
        return [[found[node] for node in each] for each in nodes]

    def _sums(self, dtypes: tuple[str, ...], terms: Terms) -> Summing:
        program, sinks = traced(len(dtypes), terms)
        loop = self._proven.plain(program, tuple(dict.fromkeys(sinks)), dtypes, PIECE_ELEMENTS)
        made = Summing(self, loop, sinks)
        self._proven.prove(loop, lambda: made.agrees(terms))
        return made

    def _tried(self, make: Callable[..., M], chain: Chain, *more: Any) -> M | None:
        """Whatever a method does with a stand-in but not with entries: the eager code decides."""
        if not self._wanted or not LEAST_ENTRIES <= chain.entries < 1 << 32 or chain.granularity == "tensor":
            return None
        if chain.granularity == "row" and chain.columns > MOST_COLUMNS:
            return None
        found = self._counted(make, chain, *more)
        self.made += found is not None
        return found

    def _counted(self, make: Callable[..., M], *of: Any) -> M | None:
        try:
            return make(*of)
        except Unfit:
            return None
        except Exception as error:
            reason = str(error) or type(error).__name__
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
            return None

    def _dtypes(self, output: OutputTensor) -> tuple[str, ...]:
        found = self.lying(output).dtypes
        if not all(name in WIDTHS for name in found):
            raise Untraceable(" and ".join(found))
        return (*found, *("F32" for _ in self.known(output).parts()))
