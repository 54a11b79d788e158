"""What stats over the whole model need, in one pass instead of two: a sample of all tensors says between
which magnitudes each wanted rank must lie, and one pass over them counts and lists. Where the sample was
wrong, the usual passes follow.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from merge.planning.outputs import OutputTensor
from merge.running.chain import Chain, LoadBlock
from merge.running.crew import Crew
from merge.running.fused.loops import Loops
from merge.running.fused.windows import Bits, Sought, Windows, windows_of
from merge.running.tasks import Shared, Task

SHARE_SAMPLED = 1 / 256
MOST_SAMPLED = 1 << 24
LOT = 1 << 9
"""Entries of a sample that lie together."""
MOST_UNSEEN = 1e-3
"""Share of the entries that need not be sampled, as their tensors are small."""
DOUBT = 2.0
CROWDED = 32
"""How many times as many entries as elsewhere may lie in a window in some tensor."""
MOST_LISTED = 1 << 25
"""Magnitudes that may lie in all windows together."""


@dataclass(frozen=True)
class Tools:
    """What a run works with; ``size`` entries are a block of the eager code."""

    outputs: Mapping[str, OutputTensor]
    loops: Loops
    load: LoadBlock
    crew: Crew
    size: int


@dataclass(frozen=True)
class Part:
    """A tensor and what is to be measured on it."""

    chain: Chain
    output: OutputTensor
    tasks: Sequence[Task]


@dataclass(frozen=True)
class _Job:
    part: Part
    loop: Windows | None
    first: int
    count: int


def found(chains: Sequence[Chain], level: int, tools: Tools) -> bool:
    """Whether all that is due in the pass of this level was found by a guess, both rounds of it at once."""
    parts = parts_at(chains, tools.outputs, level)
    sought = sought_in(parts, tools) if parts else None
    if not parts or sought is None:
        return False
    look(parts, sought, tools)
    right = settle(parts, sought)
    for part in parts if right else ():
        tools.loops.on_read(part.output, part.chain.entries)
    return right


def parts_at(chains: Sequence[Chain], outputs: Mapping[str, OutputTensor], level: int) -> list[Part] | None:
    """The tensors that are measured in the pass of this level, where all that is to be measured are ranks
    over the whole model.
    """
    due = [(chain, [task for task in chain.tasks if task.due(level)]) for chain in chains]
    parts = [Part(chain, outputs[chain.site.name], tasks) for chain, tasks in due]
    parts = [part for part in parts if part.tasks]
    if not parts:
        return None
    keys = {tuple(id(task.shared) for task in part.tasks) for part in parts}
    tasks = [task for part in parts for task in part.tasks]
    whole = all(t.shared and not t.shared.rounds_done and not t.stat.ranks_nonzero for t in tasks)
    return parts if whole and len(keys) == 1 else None


def sought_in(parts: Sequence[Part], tools: Tools) -> list[Sought] | None:
    """What to look for on behalf of each task, from a sample; ``None`` where that is not told."""
    shared = [_shared(task) for task in parts[0].tasks]
    entries = shared[0].elements
    share = min(SHARE_SAMPLED, MOST_SAMPLED / max(1, entries))
    seen: dict[str, list[list[Bits]]] = {}

    def sample(part: Part) -> None:
        bits = tools.loops.sampled(part.chain, part.output, part.tasks, int(share * part.chain.entries), LOT)
        if bits is not None:
            seen[part.output.name] = bits

    tools.crew.each(parts, sample)
    unseen = sum(part.chain.entries for part in parts if part.output.name not in seen)
    if unseen > MOST_UNSEEN * entries:
        return None
    sought = []
    for place, task in enumerate(parts[0].tasks):
        by_quantity = zip(*(bits[place] for bits in seen.values()), strict=True)
        samples = [np.concatenate(each) for each in by_quantity]
        ranks = task.stat.ranks_at(task.params, [entries] * len(samples))
        windows = None if ranks is None else windows_of(samples, ranks, entries, DOUBT)
        if windows is None:
            return None
        sought.append(Sought(windows, False, CROWDED))
    listed = sum(window.share for each in sought for windows in each.windows for window in windows)
    return sought if listed * entries <= MOST_LISTED else None


def look(parts: Sequence[Part], sought: Sequence[Sought], tools: Tools) -> None:
    """Looks through these tensors."""

    def work(job: _Job) -> None:
        if job.loop is not None and job.loop.measure(job.first, job.count):
            return
        for first, count in job.part.chain.spans(tools.size, job.first, job.count):
            block = tools.load(job.part.chain, first, count)  # says what is wrong, if that is why it failed
            pairs = zip(job.part.chain.quantities(block, job.part.tasks), sought, strict=True)
            for (_, values), seek in pairs:
                seek.look(values)

    tools.crew.each(_jobs(parts, sought, tools), work)


def settle(parts: Sequence[Part], sought: Sequence[Sought]) -> bool:
    """Ends all rounds of the stats that are shared; false if a guess was wrong, and then none."""
    values = []
    for task, seek in zip(parts[0].tasks, sought, strict=True):
        ranks = task.stat.ranks_at(task.params, [_shared(task).elements] * len(seek.windows))
        known = None if ranks is None else seek.values(ranks)
        if known is None:
            return False
        values.append(task.stat.value_at(known))
    for task, value in zip(parts[0].tasks, values, strict=True):
        shared = _shared(task)
        shared.so_far, shared.rounds_done = value, task.stat.rounds
    return True


def _jobs(parts: Sequence[Part], sought: Sequence[Sought], tools: Tools) -> Iterator[_Job]:
    for part in parts:
        loop = tools.loops.seeking(part.chain, part.output, part.tasks, sought)
        for first, count in part.chain.spans(tools.size if loop is None else loop.span(tools.size)):
            yield _Job(part, loop, first, count)


def _shared(task: Task) -> Shared:
    assert task.shared is not None  # ``parts_at`` asks for that
    return task.shared
