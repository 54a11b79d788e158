"""A statistic measured as a run does it: round by round, from parts that come in any order."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from merge.contract.stats import Stat
from merge.planning.sizing import PIECE_ELEMENTS


def measured(stat: Stat, values: Sequence[Tensor], p: Any = None, cuts: Sequence[int] = ()) -> Any:
    """All rounds over the values, cut at these pieces and taken in reverse."""
    so_far: Any = None
    total = values[0].numel()
    edges = [0, *(cut * PIECE_ELEMENTS for cut in cuts), total]
    for _ in range(stat.rounds):
        part = stat.part()
        for begin, end in reversed(list(pairwise(edges))):
            block = stat.measure([value[begin:end] for value in values], p, PIECE_ELEMENTS, so_far)
            part.add(begin // PIECE_ELEMENTS, block)
        so_far = stat.close(part, p, total, so_far)
    return so_far
