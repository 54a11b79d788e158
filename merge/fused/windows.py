"""Exact values at ranks in one pass instead of two: a sample says between which magnitudes each must lie, and
the pass counts what is above that window, and every single magnitude inside it. Where the sample was wrong,
which the counts tell, the usual two passes follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merge.blocks import Place
from merge.chain import Chain, Task
from merge.fused.source import Sink
from merge.kernels import radix
from merge.outputs import OutputTensor

if TYPE_CHECKING:
    from merge.fused.loops import Loops
    from merge.fused.ranked import AnyLoop

LEAST_ENTRIES = 1 << 20
"""Of a tensor that is worth a sample."""
SPAN = 1 << 23
CHUNKS = 8
CHUNK = 1 << 15
DEVIATIONS = 5.0
MOST_BINS = 16
"""The widest window, in values of the upper bits of a magnitude."""
MOST_BINS_TOGETHER = 48
"""Of all windows of one tensor: each takes 768 KiB a thread that counts."""


@dataclass(frozen=True)
class Window:
    """The magnitudes whose upper bits are ``low`` to ``low + bins - 1``."""

    low: int
    bins: int

    @property
    def entries(self) -> int:
        """Different magnitudes in it."""
        return self.bins * radix.LOW_BINS


def window_of(sample: Tensor, rank: int, entries: int, doubt: float = 1.0) -> Window | None:
    """Where the ``rank``-th largest of ``entries`` magnitudes must lie, by the counts of the upper bits of
    some of them; ``None`` where that is too wide. ``doubt`` is more than 1 where the rank is a guess too.
    """
    many = int(sample.sum())
    share = rank / entries
    slack = doubt * DEVIATIONS * sqrt(share * (1 - share) * many) + 8
    high = radix.find_bin(sample, max(1, int(share * many - slack)))[0]
    low = radix.find_bin(sample, min(many, int(share * many + slack)))[0]
    return Window(low, high - low + 1) if high - low < MOST_BINS else None


def value_in(counts: Tensor, window: Window, rank: int) -> float | None:
    """The ``rank``-th largest magnitude, from what ``measure`` counted; ``None`` if it lies outside. Where
    nothing is ranked, there is rank 0.
    """
    if not rank:
        return 0.0
    left = rank - int(counts[-1])
    found = radix.find_bin(counts[:-1], left)[0] if left >= 1 else -1
    if found < 0:
        return None
    place = (window.low << 16) + found
    return radix.as_float(place >> 16, place & (radix.LOW_BINS - 1))


@dataclass(frozen=True)
class Windows:
    """Counts for some tasks of one tensor. ``windows`` are by task and quantity, one for each rank that is
    wanted.
    """

    loops: "Loops"
    chain: Chain
    output: OutputTensor
    tasks: Sequence[Task]
    windows: Sequence[Sequence[Sequence[Window]]]
    loop: "AnyLoop"

    def span(self, otherwise: int) -> int:
        """Entries at a time."""
        return self.loops.span(self.output, SPAN, otherwise)

    def measure(self, first: int, count: int) -> list[list[Tensor]] | None:
        """int32 counts by task, quantity and rank: of every magnitude in the window, and of what is above.
        For a task that ranks what is not zero, the number of that by quantity follows.
        """
        with self.loops.places(self.output, first, count) as places:
            found = self._counts(places, first, count)
        if found is not None:
            self.loops.on_read(self.output, count)
        return found

    def settle(self, totals: Sequence[Sequence[Tensor]]) -> list[Any] | None:
        """The value of each task from all that was counted; ``None`` where a sample was wrong."""
        values = []
        for task, windows, counts in zip(self.tasks, self.windows, totals, strict=True):
            filled = [self.chain.entries] * len(windows)
            if task.stat.ranks_nonzero:
                filled = [int(count) for count in counts[-len(windows) :]]
            ranks = task.stat.ranks_at(task.params, filled)
            assert ranks is not None  # else there would be no windows
            left = iter(counts)
            found: list[list[float]] = []
            for places, each in zip(windows, ranks, strict=True):
                known = [value_in(next(left), *sought) for sought in zip(places, each, strict=True)]
                found.append([value for value in known if value is not None])
                if len(found[-1]) < len(known):
                    return None
            values.append(task.stat.value_at(found))
        self.loops.on_read(self.output, self.chain.entries)
        return values

    def _counts(self, places: Sequence[Place], first: int, count: int) -> list[list[Tensor]] | None:
        rooms = [torch.zeros(sink.size + 1, dtype=torch.int32) for sink in self.loop.sinks]
        addresses = [room.data_ptr() for room in rooms]
        if not self.loop.run(places, first, count, addresses, self.loops.scratch(self.loop)):
            return None
        left = iter(rooms)
        return [
            [next(left) for each in windows for _ in each]
            + [next(left) for _ in windows if task.stat.ranks_nonzero]
            for task, windows in zip(self.tasks, self.windows, strict=True)
        ]

    def agrees(self, stored: Sequence[Tensor], block: Any) -> bool:
        """Whether a sample is counted as the eager code would."""
        ours = self._counts([Place(-1, 0, s.data_ptr(), s) for s in stored], 0, stored[0].numel())
        if ours is None:
            return False
        for (task, values), windows, counts in zip(
            self.chain.quantities(block, self.tasks), self.windows, ours, strict=True
        ):
            wanted = [
                _expected(value, each) for value, own in zip(values, windows, strict=True) for each in own
            ]
            if task.stat.ranks_nonzero:
                wanted += [value.count_nonzero().to(torch.int32).view(1) for value in values]
            if not all(map(torch.equal, wanted, counts)):
                return False
        return True


def window_sink(node: int, window: Window, words: list[int]) -> Sink:
    """Where a quantity is counted; the window's place goes to the words of the program."""
    words += [window.low << 16, window.entries]
    return Sink("window", node, word=len(words) - 2, size=window.entries)


def _expected(value: Tensor, window: Window) -> Tensor:
    bits = value.reshape(-1).to(torch.float32).view(torch.int32).bitwise_and(0x7FFFFFFF) - (window.low << 16)
    inside = bits[(bits >= 0) & (bits < window.entries)]
    above = (bits >= window.entries).sum().view(1)
    return torch.cat([torch.bincount(inside, minlength=window.entries), above]).to(torch.int32)
