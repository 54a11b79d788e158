"""Exact values at ranks in one pass instead of two: a sample says between which magnitudes each must lie, and
the pass counts what is above, and lists what lies between. Where the sample was wrong, which the counts tell,
the usual two passes follow.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge.kernels.radix import MAGNITUDE, as_float
from merge.planning.outputs import OutputTensor
from merge.running.chain import Block, Chain
from merge.running.fused.samples import in_memory, sample
from merge.running.fused.source import HEAD, Sink
from merge.running.places import Place
from merge.running.tasks import Task

if TYPE_CHECKING:
    from merge.running.fused.loops import Loops
    from merge.running.fused.ranked import AnyLoop

Bits = NDArray[np.int32]
LEAST_ENTRIES = 1 << 17
"""Of a tensor that is worth a sample."""
SPAN = 1 << 20
CHUNK = 1 << 12
"""Entries of a sample that lie together."""
LOTS = 8
"""In so many parts a sample is taken where entries must be made before they can be looked at."""
LEAST_SAMPLE, MOST_SAMPLE = 1 << 16, 1 << 21
SHARE_SAMPLED = 1 / 64
DEVIATIONS = 5.0
MOST_SHARE = 0.2
"""Of all entries that may lie between the ends of a window."""
CROWDED = 1 / 256
"""Share of all entries of which a window with its ends is crowded."""
_ASKED = 16
"""One of so many entries of a sample tells whether a window is crowded."""
MARGIN = 1 << 12
"""Room for so many more between the ends than should be there."""


@dataclass(frozen=True)
class Window:
    """Magnitudes by their bits. What is equal to an end is counted, what lies between them is listed: many
    entries may be equal, where models are stored with few digits. ``share`` are expected between; ``crowded``
    says whether many are in it with its ends.
    """

    low: int
    high: int
    share: float
    crowded: bool = False

    def covers(self, other: "Window") -> bool:
        """Whether the other one lies in it."""
        return self.low <= other.low and other.high <= self.high


def sample_size(entries: int) -> int:
    """Entries of a tensor that are looked at first."""
    return min(max(int(entries * SHARE_SAMPLED), LEAST_SAMPLE), MOST_SAMPLE, entries)


def window_of(sample: Bits, rank: int, entries: int, doubt: float = 1.0) -> Window | None:
    """Where the ``rank``-th largest of ``entries`` magnitudes must lie, by the bits of some of them, which
    are put into another order; ``None`` where that is too wide. ``doubt`` is more than 1 where the rank is a
    guess too.
    """
    many = sample.size
    share = rank / entries
    slack = doubt * DEVIATIONS * sqrt(share * (1 - share) * many) + 8
    first, last = int(share * many - slack), int(share * many + slack)
    low = _placed(sample, many - last) if last <= many else 0
    high = _placed(sample, many - first) if first >= 1 else MAGNITUDE
    between = (min(last, many) - max(first, 0)) / many
    if between > MOST_SHARE:
        return None
    some = sample[::_ASKED]
    within = np.count_nonzero((some >= low) & (some <= high))
    return Window(low, high, between, bool(within > CROWDED * some.size))


def _placed(bits: Bits, place: int) -> int:
    """What stands at this place of the ascending order; one place at a time is found by far the quickest."""
    bits.partition(place)
    return int(bits[place])


def windows_of(
    samples: Sequence[Bits], ranks: Sequence[Sequence[int]], entries: int, doubt: float = 1.0
) -> list[list[Window]] | None:
    """For every quantity, by the bits of a sample, a window for each of its ranks."""
    found: list[list[Window]] = []
    for bits, wanted in zip(samples, ranks, strict=True):
        windows = [window_of(bits, rank, entries, doubt) for rank in wanted]
        found.append(joined([window for window in windows if window is not None]))
        if len(found[-1]) < len(windows):
            return None
    return found


def joined(windows: Sequence[Window]) -> list[Window]:
    """The same windows, each replaced by the widest one that covers it."""
    widest = sorted(windows, key=lambda window: window.low - window.high)
    return [next(other for other in widest if other.covers(window)) for window in windows]


class Tally:
    """What was found of a window: how many magnitudes are above it, how many as large as its upper end or
    larger, how many as large as its lower end or larger; and the bits of those between.
    """

    def __init__(self) -> None:
        self.counts = [0, 0, 0]
        self.between: list[Bits] = []

    def add(self, counts: Sequence[int], between: Bits) -> None:
        """Takes in what was found among some entries; their order does not matter."""
        self.counts = [have + more for have, more in zip(self.counts, counts, strict=True)]
        self.between.append(between)

    def value(self, window: Window, rank: int) -> float | None:
        """The ``rank``-th largest magnitude; ``None`` if it lies outside. Where nothing is ranked, there is
        rank 0.
        """
        above, at_high, least = self.counts
        found = sum(part.size for part in self.between)
        if not rank:
            return 0.0
        if above < rank <= at_high:
            bits = window.high
        elif at_high < rank <= at_high + found:
            listed = np.concatenate(self.between)
            bits = _placed(listed, at_high + found - rank)
        elif at_high + found < rank <= least:
            bits = window.low
        else:
            return None
        return as_float(bits >> 16, bits & 0xFFFF)


def found_in(values: Tensor, window: Window) -> tuple[list[int], Bits]:
    """What ``Tally.add`` takes, by the eager code."""
    bits = values.reshape(-1).to(torch.float32).cpu().numpy().view(np.int32) & MAGNITUDE
    limits = (bits > window.high, bits >= window.high, bits >= window.low)
    between = bits[(bits > window.low) & (bits < window.high)]
    return [int(np.count_nonzero(each)) for each in limits], between


class Unfit(Exception):
    """Another way is the usual one here."""


class Sought:
    """What is looked for on behalf of one task: by quantity, a window for each rank that is wanted, and what
    was found of it. ``filled`` counts what is not zero, where that is ranked.
    """

    def __init__(self, windows: Sequence[Sequence[Window]], nonzero: bool, crowded: int = 4) -> None:
        """``crowded`` times as many as in all entries may lie in a window in some of them."""
        self.windows = windows
        self.nonzero = nonzero
        self._crowded = crowded
        self.filled = [0] * len(windows)
        self._tallies = [{window: Tally() for window in each} for each in windows]
        self._lock = threading.Lock()

    def rooms(self, count: int) -> list[int]:
        """Counters that so many entries may take, for every window, then for every quantity if what is not
        zero is counted.
        """
        shares = [min(1.0, self._crowded * window.share) for each in self._tallies for window in each]
        nonzero = [HEAD] * (len(self.windows) if self.nonzero else 0)
        return [HEAD + int(share * count) + MARGIN for share in shares] + nonzero

    def sinks(self, nodes: Sequence[int], words: list[int]) -> list[Sink]:
        """Where these quantities are counted; the ends of the windows go to the words of the program."""
        found = []
        for node, tallies in zip(nodes, self._tallies, strict=True):
            for window in tallies:
                found.append(Sink("window", node, word=len(words)))
                words += [window.low, window.high, int(window.crowded)]
        return found + [Sink("nonzero", node) for node in nodes if self.nonzero]

    def take(self, rooms: Iterator[Tensor]) -> None:
        """Takes in what a loop has counted, from any thread and in any order."""
        with self._lock:
            for tally in (tally for each in self._tallies for tally in each.values()):
                tally.add(*counted(next(rooms)))
            if self.nonzero:
                self.filled = [have + int(next(rooms)[0]) for have in self.filled]

    def look(self, values: Sequence[Tensor]) -> None:
        """Takes in entries of the quantities, by the eager code."""
        found = [
            (tally, found_in(value, window))
            for value, tallies in zip(values, self._tallies, strict=True)
            for window, tally in tallies.items()
        ]
        filled = [int(value.count_nonzero()) if self.nonzero else 0 for value in values]
        with self._lock:
            for tally, (counts, between) in found:
                tally.add(counts, between)
            self.filled = [have + more for have, more in zip(self.filled, filled, strict=True)]

    def values(self, ranks: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """The magnitudes at these ranks of each quantity; ``None`` where a sample was wrong."""
        found: list[list[float]] = []
        for windows, tallies, each in zip(self.windows, self._tallies, ranks, strict=True):
            known = [tallies[window].value(window, rank) for window, rank in zip(windows, each, strict=True)]
            found.append([value for value in known if value is not None])
            if len(found[-1]) < len(known):
                return None
        return found


def counted(room: Tensor) -> tuple[list[int], Bits]:
    """What ``Tally.add`` takes, from what a loop has written."""
    words = room.numpy()
    above, at_high, least, many = words[:HEAD].view(np.int64)[:4].tolist()
    return [above, at_high, least], words[HEAD : HEAD + many].copy()


@dataclass(frozen=True)
class Windows:
    """Looks through one tensor for what some tasks seek."""

    loops: "Loops"
    chain: Chain
    output: OutputTensor
    tasks: Sequence[Task]
    sought: Sequence[Sought]
    loop: "AnyLoop"

    def span(self, otherwise: int) -> int:
        """Entries at a time."""
        return self.loops.span(self.output, SPAN, otherwise)

    def measure(self, first: int, count: int) -> bool:
        """Takes in these entries; false where the eager code must see to it."""
        with self.loops.places(self.output, first, count) as places:
            rooms = self._rooms(places, first, count)
        if rooms is None:
            return False
        left = iter(rooms)
        for sought in self.sought:
            sought.take(left)
        self.loops.on_read(self.output, count)
        return True

    def look(self, block: Block) -> None:
        """Takes in entries by the eager code."""
        pairs = zip(self.chain.quantities(block, self.tasks), self.sought, strict=True)
        for (_, values), sought in pairs:
            sought.look(values)

    def settle(self) -> list[Any] | None:
        """The value of each task when all was looked at; ``None`` where a sample was wrong."""
        values = []
        for task, sought in zip(self.tasks, self.sought, strict=True):
            filled = sought.filled if sought.nonzero else [self.chain.entries] * len(sought.windows)
            ranks = task.stat.ranks_at(task.params, filled)
            assert ranks is not None  # else there would be no windows
            found = sought.values(ranks)
            if found is None:
                return None
            values.append(task.stat.value_at(found))
        self.loops.on_read(self.output, self.chain.entries)
        return values

    def agrees(self) -> bool:
        """Whether a sample is counted as the eager code would."""
        stored, block = sample(self.chain, self.loop.dtypes, self.output, self.loops.known(self.output), 0)
        ours = self._rooms(in_memory(stored), 0, stored[0].numel())
        if ours is None:
            return False
        left = iter(ours)
        for (_, values), sought in zip(self.chain.quantities(block, self.tasks), self.sought, strict=True):
            for value, windows in zip(values, sought.windows, strict=True):
                for window in dict.fromkeys(windows):
                    counts, between = counted(next(left))
                    wanted, listed = found_in(value, window)
                    if counts != wanted or not np.array_equal(np.sort(between), np.sort(listed)):
                        return False
            if sought.nonzero and any(int(next(left)[0]) != int(v.count_nonzero()) for v in values):
                return False
        return True

    def _rooms(self, places: Sequence[Place], first: int, count: int) -> list[Tensor] | None:
        """The counters of every sink for these entries, in memory that this thread keeps."""
        sizes = [size for sought in self.sought for size in sought.rooms(count)]
        rooms = [self.loops.buffer(f"counted {at}", size, torch.int32) for at, size in enumerate(sizes)]
        for room in rooms:
            room[:HEAD] = 0
            room[HEAD - 1] = room.numel() - HEAD
        addresses = [room.data_ptr() for room in rooms]
        fine = self.loop.run(places, first, count, addresses, self.loops.scratch(self.loop))
        return rooms if fine else None


def ranks_wanted(task: Task, filled: Sequence[int]) -> list[tuple[int, ...]]:
    """What a task seeks of each quantity, of which so many entries count. Raises ``Unfit``."""
    wanted = task.stat.ranks_at(task.params, filled)
    if wanted is None:
        raise Unfit
    return wanted


def sought_for(task: Task, samples: Sequence[Bits], entries: int) -> Sought:
    """For every quantity of a task, by the bits of a sample, a window for each rank that is wanted."""
    filled, doubt = [entries] * len(samples), 1.0
    if task.stat.ranks_nonzero:
        doubt = 2.0
        filled = [int(entries * np.count_nonzero(bits) / bits.size) for bits in samples]
    found = windows_of(samples, ranks_wanted(task, filled), entries, doubt)
    if found is None:
        raise Unfit
    return Sought(found, task.stat.ranks_nonzero)
