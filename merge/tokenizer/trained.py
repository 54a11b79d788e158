"""Tokens that training has hardly reached, told from their rows (Land and Bartolo, arXiv:2405.05417)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from merge.tokenizer.approximate import Rows, lengths

SHARE = 0.01
"""Of all rows, at most so many are suspected by either sign."""
ALIKE = 0.5
"""Cosine to the mean unused row below which nothing is suspected."""


def under_trained(embed: Rows, head: Rows | None, unused: Sequence[int]) -> frozenset[int]:
    """Rows that are ``unused``; of a model with a head of its own the shortest embeddings; and of either
    tensor those that point where the unused rows do.
    """
    found = set(unused)
    if head is not None:
        found |= _below(lengths(embed), SHARE)
    for rows in (embed, *((head,) if head is not None else ())):
        if unused:
            found |= _below(-_cosines(rows, rows.take(unused).mean(dim=0)), SHARE, -ALIKE)
    return frozenset(found)


def _below(values: Tensor, share: float, limit: float = torch.inf) -> set[int]:
    """Positions of values below the quantile and below the limit."""
    place = int(share * (values.numel() - 1))
    border = min(float(values.sort().values[place]), limit) if values.numel() else limit
    return set((values < border).nonzero().flatten().tolist())


def _cosines(rows: Rows, to: Tensor) -> Tensor:
    found = torch.empty(rows.count)
    for first, tile in rows.tiles():
        found[first : first + len(tile)] = torch.nn.functional.cosine_similarity(tile, to[None], dim=1)
    return found
