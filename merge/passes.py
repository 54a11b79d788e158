"""Streaming passes over blocks of several tensors at once, which measure what their methods need."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from merge.blocks import Crew
from merge.chain import Block, Chain, Shared, Task

Load = Callable[[Chain, int, int], Block]
"""Reads (first, count) of a chain's inputs."""

SharedStats = dict[tuple[int, int | None, Any], Shared]


@dataclass(frozen=True)
class _Job:
    chain: Chain
    tasks: Sequence[Task]
    first: int
    count: int


def share_global(chains: Sequence[Chain]) -> SharedStats:
    """Joins the tasks of global stats across tensors, and says how many entries each is measured on."""
    shared: SharedStats = {}
    for chain in chains:
        for task in chain.tasks:
            if task.stat.is_global(task.params):
                key = (task.stage, task.position, task.key)
                task.shared = shared.setdefault(key, Shared(task.stat.part()))
                task.shared.elements += _entries(chain)
    return shared


def global_levels(chains: Sequence[Chain]) -> int:
    """How many passes over the whole model come before any tensor can be written."""
    return max(
        (t.first_level + t.stat.rounds - 1 for c in chains for t in c.tasks if t.shared is not None),
        default=0,
    )


def measure(chains: Sequence[Chain], level: int, load: Load, crew: Crew, size: int) -> None:
    """One pass over the blocks of these tensors; ends the rounds of their own stats, and adds to the shared
    ones.
    """
    due = [(chain, [task for task in chain.tasks if task.due(level)]) for chain in chains]
    due = [(chain, tasks) for chain, tasks in due if tasks]
    for _, tasks in due:
        for task in tasks:
            task.part = task.stat.part()
    lock = threading.Lock()

    def work(job: _Job) -> None:
        found = job.chain.measure(load(job.chain, job.first, job.count), job.tasks)
        with lock:
            for task, added in zip(job.tasks, found, strict=True):
                assert task.part is not None
                task.part.add(job.first // job.chain.piece, added)

    crew.each(_jobs(due, size), work)
    for chain, tasks in due:
        for task in tasks:
            if task.shared is None:
                task.so_far = task.stat.close(task.part, task.params, _entries(chain), task.so_far)
                task.rounds_done += 1
            else:
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
        held += _entries(chain)
        if len(batch) >= most or held >= entries:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _jobs(due: Sequence[tuple[Chain, Sequence[Task]]], size: int) -> Iterator[_Job]:
    for chain, tasks in due:
        for first, count in chain.spans(size):
            yield _Job(chain, tasks, first, count)


def _entries(chain: Chain) -> int:
    total = 1
    for length in chain.site.shape:
        total *= length
    return total
