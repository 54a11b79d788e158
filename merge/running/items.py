"""The spans of tensors in the order in which they are written."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from merge.checkpoint.layout import ShardLayout
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


def names_in_turns(layouts: Sequence[ShardLayout]) -> list[str]:
    """The tensors of files that are written side by side, by their places in their files."""
    placed = [(info.begin, at, name) for at, own in enumerate(layouts) for name, info in own.entries.items()]
    return [name for _, _, name in sorted(placed)]


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
