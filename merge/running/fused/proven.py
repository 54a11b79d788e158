"""Loops that are built, and are used after they gave the very bits of the eager code on a sample."""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from merge.planning.sizing import PIECE_ELEMENTS
from merge.running.blocks import Buffers
from merge.running.fused.compiler import Built, Compiler
from merge.running.fused.loop import Loop
from merge.running.fused.ordering import ORDERING
from merge.running.fused.ranked import AnyLoop, RankedLoop, halves, rank_nodes
from merge.running.fused.source import MOST_STACK, Sink, block_of, piecewise, stack_bytes, text
from merge.running.fused.trace import Program, Untraceable


class Proven:
    """Those of one run: each is built once, and tried once."""

    def __init__(self, compiler: Compiler, buffers: Buffers) -> None:
        self._compiler = compiler
        self._buffer = buffers.get
        self._lock = threading.Lock()
        self._built: dict[Any, Built | None] = {}
        self._sound: dict[Any, bool] = {}

    def loop(self, program: Program, sinks: tuple[Sink, ...], dtypes: tuple[str, ...], piece: int) -> AnyLoop:
        """The loop over these ``sinks`` of a program, in pieces of so many entries where it adds up; of two
        halves where it ranks.
        """
        nodes = rank_nodes(program, sinks)
        if not nodes:
            return self.plain(program, sinks, dtypes, piece)
        if program.tables or any(sink.kind == "columns" for sink in sinks):
            raise Untraceable("ranks and columns")
        first, rest, shared, columns = halves(program, nodes, len(dtypes))
        before = self.plain(program, first, dtypes, piece)
        after = self.plain(rest, sinks, (*dtypes, *("F32" for _ in nodes)), piece)
        ordering = self._compiler.build(ORDERING)
        return RankedLoop(before, after, shared, columns, piece, self._buffer, ordering)

    def plain(self, program: Program, sinks: tuple[Sink, ...], dtypes: tuple[str, ...], piece: int) -> Loop:
        """The same of a program that ranks nothing."""
        step = piece if piecewise(sinks) else block_of(sinks)
        if step > PIECE_ELEMENTS:
            raise Untraceable("pieces are too long")
        if stack_bytes(sinks) > MOST_STACK:
            raise Untraceable("too much is added up at a time")
        every = (*dtypes, *("F32" for _ in program.tables))
        key = (program.stamp or tuple(program.nodes), sinks, every)
        with self._lock:
            if key not in self._built:
                self._built[key] = self._compiler.build(text(program, sinks, every))
            built = self._built[key]
        if built is None:
            raise Untraceable(self._compiler.reason)
        numbers = (ctypes.c_double * max(1, len(program.numbers)))(*program.numbers)
        words = (ctypes.c_uint32 * max(1, len(program.words)))(*program.words)
        return Loop(built, sinks, dtypes, numbers, words, step, tuple(program.tables))

    def prove(self, loop: AnyLoop, agrees: Callable[[], bool]) -> None:
        """Refuses a loop that does not give the bits of the eager code."""
        with self._lock:
            if loop.key not in self._sound:
                self._sound[loop.key] = agrees()
            if not self._sound[loop.key]:
                raise Untraceable("the compiled loop gives other bits")
