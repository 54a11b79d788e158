"""A built function with the numbers of one tensor's pass, ready to run over spans of it."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from merge.running.fused.compiler import Built
from merge.running.fused.source import PAD, WIDTHS, Sink, block_of
from merge.running.places import Place


class Target(NamedTuple):
    """Where entries are written: to the open file ``fd`` from byte ``offset`` on; nowhere if that is -1."""

    fd: int
    offset: int


NOWHERE = Target(-1, 0)


def packed(
    places: Sequence[Place], into: Sequence[int], target: Target
) -> tuple["array[int]", tuple[int, int, int, int]]:
    """Memory that holds what a loop is told of places and sinks, and where in it the files, the bytes, the
    addresses and the sinks with their target begin.
    """
    fds, offsets, addresses, _ = zip(*places, strict=True)
    held = array("q", (*fds, *offsets, *addresses, *into, *target))
    at, size = held.buffer_info()[0], held.itemsize * len(fds)
    return held, (at, at + size, at + 2 * size, at + 3 * size)


@dataclass(frozen=True)
class Loop:
    """A built function with the numbers of one tensor's pass. ``tables`` have a number for each column, or
    each row of so many entries.
    """

    built: Built
    sinks: tuple[Sink, ...]
    dtypes: tuple[str, ...]
    numbers: Any
    words: Any
    step: int
    tables: tuple[tuple[Tensor, int], ...] = ()

    def run(
        self,
        places: Sequence[Place],
        first: int,
        count: int,
        into: Sequence[int],
        scratch: Tensor,
        spread: tuple[int, int] | None = None,
        target: Target = NOWHERE,
    ) -> bool:
        """Runs over ``count`` entries, into sinks at these addresses; whether all went well. They follow each
        other, unless ``spread`` says how many lie together (at most a block), and how far each lot begins
        after the one before.
        What the first sink stores is written to the ``target`` too, while it is in the cache.
        """
        step, stride = spread or (self.step, self.step)
        _held, (fds, offsets, addresses, sinks) = packed((*places, *self._repeats), into, target)
        status = self.built.run(
            fds,
            offsets,
            addresses,
            self.numbers,
            self.words,
            first,
            count,
            stride << 32 | step,
            sinks,
            scratch.data_ptr(),
        )
        return int(status) == 0

    @cached_property
    def _repeats(self) -> list[Place]:
        """Where the tables lie, and how often each of their numbers counts."""
        return [Place(-1, -entries or each.numel(), each.data_ptr(), each) for each, entries in self.tables]

    @property
    def key(self) -> Any:
        """What stands for the code that is run."""
        return self.built

    @cached_property
    def scratch_bytes(self) -> int:
        """Memory for one block of every input."""
        each = sum(WIDTHS[name] for name in self.dtypes) + WIDTHS["F32"] * len(self.tables)
        return (block_of(self.sinks) + PAD) * each
