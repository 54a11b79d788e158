"""Streaming passes over blocks of several tensors at once, which measure what their methods need."""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from merge.running.chain import Block, Chain, LoadBlock
from merge.running.crew import Crew
from merge.running.fused.spans import Measuring
from merge.running.fused.windows import Windows
from merge.running.tasks import Shared, Task

AT_ONCE = 1 << 15
"""Entries of a tensor that is always one block."""

SharedStats = dict[tuple[int, Hashable, Any], Shared]


Way = Measuring | Windows | None
"""How a tensor is measured: by compiled loops, or by the eager code."""

Quicker = Callable[[Chain, Sequence[Task], bool], Way]
"""The way for these tasks of a tensor; the last argument allows a guess."""

Due = list[tuple[Chain, Sequence[Task]]]


class Keeper(Protocol):
    """Where what was measured over all tensors is kept: a journal, or nowhere."""

    shared: list[Any] | None

    def add_shared(self, values: list[Any]) -> None:
        """Keeps them."""


@dataclass(frozen=True)
class _Job:
    chain: Chain
    tasks: Sequence[Task]
    quick: Way
    first: int
    count: int


def share_global(chains: Sequence[Chain]) -> SharedStats:
    """Joins the tasks of global stats across tensors of the same sources, those of a prepare across all of
    its source, and says how many entries each is measured on.
    """
    shared: SharedStats = {}
    for chain in chains:
        for task in chain.tasks:
            if task.stat.is_global(task.params):
                key = (task.stage, _whose(chain, task), task.key)
                task.shared = shared.setdefault(key, Shared(task.stat.part()))
                task.shared.elements += chain.entries
    return shared


def _whose(chain: Chain, task: Task) -> Hashable:
    """Slices, modules and models that lack tensors make that not all tensors have the same sources."""
    if task.stat.by_place:
        return task.position
    sources = chain.sources or chain.site.models
    if task.position is None:
        return sources
    own = sources[task.position]
    return own, sources[: task.position].count(own)


def take_over(chains: Sequence[Chain], shared: SharedStats, values: Sequence[Any]) -> None:
    """Ends all rounds of global stats with values that were found before."""
    for held, value in zip(shared.values(), values, strict=True):
        held.so_far = tuple(value)
    for task in (task for chain in chains for task in chain.tasks):
        if task.shared is not None:
            task.shared.rounds_done = task.stat.rounds


def global_levels(chains: Sequence[Chain]) -> int:
    """How many passes over the whole model come before any tensor can be written."""
    return max(
        (t.first_level + t.stat.rounds - 1 for c in chains for t in c.tasks if t.shared is not None),
        default=0,
    )


def count(chain: Chain) -> int:
    """How many passes over this tensor its stats take."""
    levels = set()
    if not alone(chain):
        for task in chain.tasks:
            once = chain.entries <= AT_ONCE and not task.stat.is_global(task.params) and task.stat.at_once
            levels |= {task.first_level + at for at in range(1 if once else task.stat.rounds)}
    return len(levels)


def alone(chain: Chain) -> bool:
    """Whether a small tensor's stats are found from the block that is merged, without a pass of their own."""
    small = 0 < chain.entries <= AT_ONCE and bool(chain.tasks)
    return small and all(t.stat.at_once and not t.stat.is_global(t.params) for t in chain.tasks)


def settle(chain: Chain, whole: Block) -> None:
    """Finds the stats of such a tensor from all of it."""
    for level in range(1, chain.levels + 1):
        due = [task for task in chain.tasks if task.due(level)]
        for task, values in chain.quantities(whole, due):
            task.so_far, task.rounds_done = task.stat.whole(values, task.params), task.stat.rounds


def measure(
    chains: Sequence[Chain],
    level: int,
    load: LoadBlock,
    crew: Crew,
    size: int,
    quick: Quicker = lambda *_: None,
) -> None:
    """One pass over the blocks of these tensors; ends the rounds of their own stats, and adds to the shared
    ones. ``quick`` may know a quicker way for some, and for some a guess that makes one round of two; where
    that was wrong, the tensor is measured once more.
    """
    due: Due = [(chain, [task for task in chain.tasks if task.due(level)]) for chain in chains]
    missed = _pass([(chain, tasks) for chain, tasks in due if tasks], load, crew, size, quick, guess=True)
    if missed:
        _pass(missed, load, crew, size, quick, guess=False)


def _pass(due: Due, load: LoadBlock, crew: Crew, size: int, quick: Quicker, *, guess: bool) -> Due:
    """Gives the tensors whose guess was wrong."""
    left: dict[str, int] = {}
    missed: Due = []
    lock = threading.Lock()
    for _, tasks in due:
        for task in tasks:
            task.part = task.stat.part()

    def work(job: _Job) -> None:
        if job.chain.entries <= AT_ONCE:
            _settle(job, load)
        else:
            for first, found in _found(job, load, size):
                with lock:
                    for task, added in zip(job.tasks, found, strict=True):
                        assert task.part is not None
                        task.part.add(first // job.chain.piece, added)
        with lock:
            left[job.chain.site.name] -= 1
            last = not left[job.chain.site.name]
        if last and isinstance(job.quick, Windows) and not _guessed(job.quick, job.tasks):
            missed.append((job.chain, job.tasks))
        elif last:
            _end_round(job.chain, job.tasks)

    crew.each(_jobs(due, size, quick, guess, left), work)
    again = {chain.site.name for chain, _ in missed}
    for chain, tasks in due:
        if chain.site.name not in again:
            _absorb(chain, tasks)
    return missed


def _guessed(windows: Windows, tasks: Sequence[Task]) -> bool:
    """Ends all rounds of these tasks; false if the guess was wrong."""
    values = windows.settle()
    for task, value in zip(tasks, values or (), strict=False):
        task.so_far, task.rounds_done = value, task.stat.rounds
    return values is not None


def _end_round(chain: Chain, tasks: Sequence[Task]) -> None:
    """Of the stats of this tensor alone."""
    for task in tasks:
        if task.shared is None and not task.measured:
            task.so_far = task.stat.close(task.part, task.params, chain.entries, task.so_far)
            task.rounds_done += 1
            task.part = None


def _absorb(chain: Chain, tasks: Sequence[Task]) -> None:
    """Takes what was found of this tensor into the stats over all tensors."""
    for task in tasks:
        if task.shared is not None and not task.measured:
            assert task.part is not None
            task.part.tensor = chain.site.name
            task.shared.part.absorb(task.part)
            task.part = None


def close_shared(chains: Sequence[Chain], level: int) -> None:
    """Ends the rounds of global stats after a pass over all tensors."""
    closed: set[int] = set()
    for chain in chains:
        for task in chain.tasks:
            if task.shared is None or id(task.shared) in closed or not task.due(level):
                continue
            closed.add(id(task.shared))
            shared = task.shared
            shared.so_far = task.stat.close(shared.part, task.params, shared.elements, shared.so_far)
            shared.part = task.stat.part()
            shared.rounds_done += 1


def batches(chains: Sequence[Chain], most: int, entries: int) -> Iterator[list[Chain]]:
    """Consecutive tensors, at most ``most`` and about ``entries`` at a time."""
    batch: list[Chain] = []
    held = 0
    for chain in chains:
        batch.append(chain)
        held += chain.entries
        if len(batch) >= most or held >= entries:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _jobs(due: Due, size: int, quick: Quicker, guess: bool, left: dict[str, int]) -> Iterator[_Job]:
    for chain, tasks in due:
        way = quick(chain, tasks, guess)
        spans = list(chain.spans(size if way is None else way.span(size)))
        left[chain.site.name] = len(spans)
        for first, count in spans:
            yield _Job(chain, tasks, way, first, count)


def _settle(job: _Job, load: LoadBlock) -> None:
    """A small tensor in one block: values at once where the stat can, else what the block adds."""
    block = load(job.chain, job.first, job.count)
    for task, values in job.chain.quantities(block, job.tasks):
        if task.shared is None and task.stat.at_once:
            task.so_far, task.rounds_done = task.stat.whole(values, task.params), task.stat.rounds
        else:
            assert task.part is not None
            added = task.stat.measure(values, task.params, job.chain.piece, task.value)
            task.part.add(0, [tensor.cpu() for tensor in added])


def _found(job: _Job, load: LoadBlock, size: int) -> Iterator[tuple[int, list[list[Tensor]]]]:
    """What a job adds, with the first entry of each part."""
    if isinstance(job.quick, Windows):
        if job.quick.measure(job.first, job.count):
            return
    elif job.quick is not None:
        found = job.quick.measure(job.first, job.count)
        if found is not None:
            yield job.first, found
            return
    for first, count in job.chain.spans(size, job.first, job.count):
        block = load(job.chain, first, count)  # says what is wrong, if that is why the loop gave nothing
        if isinstance(job.quick, Windows):
            job.quick.look(block)
        else:
            yield first, job.chain.measure(block, job.tasks)
