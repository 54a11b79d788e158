"""Rank-one pieces of several products, grouped by what they do, and one piece made of each group.

Piece k is b_k a_k': column k of the left factors times row k of the right ones. Only products of pieces with
pieces are needed, so that everything but the last step works on (n, n) matrices. In float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SAME = 1e-9
"""Squared distance below which two pieces of length 1 are the same."""


def alike(left: Tensor, right: Tensor) -> Tensor:
    """(n, n): the cosine between any two pieces as matrices, (a_i a_j)(b_i b_j) over their lengths.

    It is the same for (a, b), (-a, -b) and (c a, b / c).
    """
    return _cosines(left.T) * _cosines(right)


def alike_by_parts(left: Tensor, right: Tensor) -> Tensor:
    """(n, n): products of [a / |a|, b / |b|], which knows (a, b) from (-a, -b)."""
    return _cosines(left.T) + _cosines(right)


def grouped(likeness: Tensor, lengths: Tensor, count: int, rounds: int) -> list[Tensor]:
    """At most ``count`` groups of the n pieces, by k-means in the space that ``likeness`` (n, n) measures.

    Begins with the longest piece and, each time, the one that is longest and farthest from those taken, so
    that the order of the pieces does not matter; with fewer different pieces there are fewer groups.
    """
    seeds = _spread(likeness, lengths, count)
    belongs = _nearest(likeness, torch.eye(len(likeness)).double()[:, seeds])
    for _ in range(rounds):
        members = torch.nn.functional.one_hot(belongs, len(seeds)).double()
        again = _filled(_distances(likeness, members), len(seeds))
        if torch.equal(again, belongs):
            break
        belongs = again
    groups = (torch.nonzero(belongs == place).flatten() for place in range(len(seeds)))
    return [group for group in groups if len(group)]


def leading_pair(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The best (m,), (n,) with b a' near the mean of the pieces, of one length; zeros where they cancel."""
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, values, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    root = (values[0] / left.shape[1]).sqrt()
    row = q_right @ vh[0]
    sign = -1.0 if float(row[row.abs().argmax()]) < 0 else 1.0
    return q_left @ u[:, 0] * (sign * root), row * (sign * root)


def _cosines(rows: Tensor) -> Tensor:
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return unit @ unit.T


def _spread(likeness: Tensor, lengths: Tensor, count: int) -> list[int]:
    own = likeness.diagonal()
    seeds = [int(lengths.argmax())]
    nearest = own + own[seeds[0]] - 2 * likeness[seeds[0]]
    while len(seeds) < count and float(nearest.max()) > SAME * float(own.max()):
        seeds.append(int((nearest.clamp(min=0) * lengths.square()).argmax()))
        nearest = torch.minimum(nearest, own + own[seeds[-1]] - 2 * likeness[seeds[-1]])
    return seeds


def _distances(likeness: Tensor, members: Tensor) -> Tensor:
    """(n, groups): squared distance of each piece to the mean of each group's; none to a group of none."""
    sizes = members.sum(dim=0)
    shares = members / sizes.clamp(min=1)
    centre = (shares * (likeness @ shares)).sum(dim=0)
    found = likeness.diagonal()[:, None] - 2 * likeness @ shares + centre
    return found.masked_fill(sizes == 0, float("inf"))


def _nearest(likeness: Tensor, members: Tensor) -> Tensor:
    return _distances(likeness, members).argmin(dim=1)


def _filled(distances: Tensor, groups: int) -> Tensor:
    """The nearest group of each piece; a group left empty gets the piece that is farthest from its own."""
    best, belongs = distances.min(dim=1)
    for empty in range(groups):
        sizes = torch.bincount(belongs, minlength=groups)
        if sizes[empty]:
            continue
        far = int(torch.where(sizes[belongs] > 1, best, -torch.ones_like(best)).argmax())
        belongs[far], best[far] = empty, 0.0
    return belongs


def lengths_of(left: Tensor, right: Tensor) -> Tensor:
    """(n,): the Frobenius norm of each piece."""
    lengths: Tensor = torch.linalg.vector_norm(left, dim=0) * torch.linalg.vector_norm(right, dim=1)
    return lengths


def columns_of(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The factors of all side by side, without pieces that are zero."""
    left = torch.cat([part[0] for part in parts], dim=1)
    right = torch.cat([part[1] for part in parts])
    kept = lengths_of(left, right) > 0
    return left[:, kept], right[kept]
