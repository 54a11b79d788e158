"""The spans of tensors in the order in which they are written."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from merge.planning.outputs import OutputTensor
from merge.running.chain import Chain
from merge.running.fused.spans import Writing
from merge.running.passes import AT_ONCE

HANDFUL = 32
"""Small items that one thread takes together."""


@dataclass(frozen=True)
class Item:
    """A span of an output: its chain, unless it is taken over, and its compiled loop, where there is one."""

    output: OutputTensor
    chain: Chain | None
    loop: Writing | None
    first: int
    count: int
    last: bool

    @property
    def small(self) -> bool:
        """Whether most of its time goes to the interpreter: nothing is gained by doing two such items at the
        same time, as threads then wait for each other at every step.
        """
        return self.loop is None and self.count <= AT_ONCE


def in_shares(
    files: Sequence[Sequence[OutputTensor]],
    bytes_of: Callable[[OutputTensor], int],
    most_bytes: int,
    most_large: int,
) -> Iterator[list[OutputTensor]]:
    """The tensors of files that are written side by side, each file's in their order, about so many bytes
    and at most so many large tensors at a time. Of every file comes as much as is left of it beside the
    others: as long as there are several, no thread waits for another to write.
    """
    queues = [deque(own) for own in files]
    left = [sum(map(bytes_of, own)) for own in files]
    while any(queues):
        batch: list[OutputTensor] = []
        taken, large = [0] * len(files), 0
        shares = [most_bytes * each / max(1, sum(left)) for each in left]
        while large < most_large:
            due = [at for at, own in enumerate(queues) if own and (taken[at] < shares[at] or not left[at])]
            if not due:
                break
            at = min(due, key=taken.__getitem__)
            batch.append(queues[at].popleft())
            taken[at] += bytes_of(batch[-1])
            large += prod(batch[-1].shape) > AT_ONCE
        left = [whole - own for whole, own in zip(left, taken, strict=True)]
        yield batch


def in_handfuls(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Every item alone, but small ones that follow each other some together."""
    held: list[Item] = []
    for item in items:
        if held and not (item.small and len(held) < HANDFUL):
            yield held
            held = []
        if item.small:
            held.append(item)
        else:
            yield [item]
    if held:
        yield held


def even_spans(total: int, size: int) -> Iterable[tuple[int, int]]:
    """(first, count) of spans of ``size`` entries; the last one may be shorter."""
    for first in range(0, total, size):
        yield first, min(size, total - first)
