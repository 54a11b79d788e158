"""One map for all new tokens, from the donor's space to the model's, found on the tokens that both know."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.tokenizer.approximate import Combination, Rows, lengths, orthogonal_pursuit, relative

TAKEN_ROWS = 64
"""Directions that are approximated at a time: fixed."""

Each = Callable[[Sequence[int], Callable[[int], None]], None]
"""Does the work on every number, on several threads or not."""


@dataclass(frozen=True)
class SpaceMap:
    """``(x - origin) @ matrix + goal``: origin (donor width), matrix (donor width, width), goal (width);
    ``span`` (donor width, n) are orthonormal columns that the matrix looks at, ``None`` for all. float64.
    """

    origin: Tensor
    matrix: Tensor
    goal: Tensor
    span: Tensor | None

    def apply(self, targets: Tensor) -> Tensor:
        """float64 (targets, width)."""
        return (targets.to(torch.float64) - self.origin) @ self.matrix + self.goal

    def errors(self, targets: Tensor) -> Tensor:
        """What the map does not look at, as a share of each target's length."""
        centred = targets.to(torch.float64) - self.origin
        left = torch.zeros_like(centred) if self.span is None else centred - centred @ self.span @ self.span.T
        return relative(left, centred.norm(dim=1))


def landmark_map(donor: Rows, own: Rows) -> SpaceMap:
    """The rotation that brings the donor's shared rows nearest to the model's (Schönemann, 1966), about their
    means; of the wider space only the principal directions take part that the narrower one has room for.
    """
    moments = _joint(donor, own)
    ours, theirs = _principal(moments.own, donor.width), _principal(moments.donor, own.width)
    cross = moments.cross if theirs is None else theirs.T @ moments.cross
    cross = cross if ours is None else cross @ ours
    left, _, right = torch.linalg.svd(cross, full_matrices=False)
    matrix: Tensor = left @ right
    matrix = matrix if theirs is None else theirs @ matrix
    return SpaceMap(moments.origin, matrix if ours is None else matrix @ ours.T, moments.goal, theirs)


def sparse_basis_map(donor: Rows, own: Rows, k: int, each: Each) -> SpaceMap:
    """The principal directions of the narrower space, each said by ``k`` shared rows, are a basis of either
    space; a target keeps its coordinates (least squares).
    """
    moments = _joint(donor, own)
    narrow_is_donor = donor.width < own.width
    narrow, origin = (donor, moments.origin) if narrow_is_donor else (own, moments.goal)
    spread = moments.donor if narrow_is_donor else moments.own
    directions = torch.linalg.eigh(spread)[1].flip(1).T.contiguous()
    atoms = Centred(narrow, origin)
    sizes = lengths(atoms)
    found: dict[int, Combination] = {}

    def work(first: int) -> None:
        part = directions[first : first + TAKEN_ROWS].to(torch.float32)
        found[first] = orthogonal_pursuit(part, atoms, sizes, k)

    each(range(0, len(directions), TAKEN_ROWS), work)
    parts = [found[first] for first in sorted(found)]
    theirs = torch.cat([part.apply(Centred(donor, moments.origin)) for part in parts])
    ours = torch.cat([part.apply(Centred(own, moments.goal)) for part in parts])
    inverse: Tensor = torch.linalg.pinv(theirs)
    span = None if donor.width <= own.width else torch.linalg.qr(theirs.T)[0]
    return SpaceMap(moments.origin, inverse @ ours, moments.goal, span)


class Centred:
    """The same rows less a point."""

    def __init__(self, rows: Rows, point: Tensor) -> None:
        self.count, self.width = rows.count, rows.width
        self._rows, self._point = rows, point.to(torch.float32)

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        """First position and float32 rows, in order."""
        return ((first, tile - self._point) for first, tile in self._rows.tiles())

    def take(self, positions: Sequence[int]) -> Tensor:
        """float32 rows (len(positions), width)."""
        return self._rows.take(positions) - self._point


@dataclass(frozen=True)
class _Joint:
    """Means of both sides, their sums of squares (width, width) and of products (donor width, width)."""

    origin: Tensor
    goal: Tensor
    donor: Tensor
    own: Tensor
    cross: Tensor


def _joint(donor: Rows, own: Rows) -> _Joint:
    means = []
    for rows in (donor, own):
        total = torch.zeros(rows.width, dtype=torch.float64)
        for _, tile in rows.tiles():
            total += tile.to(torch.float64).sum(dim=0)
        means.append(total / max(rows.count, 1))
    squares = [torch.zeros(rows.width, rows.width, dtype=torch.float64) for rows in (donor, own)]
    cross = torch.zeros(donor.width, own.width, dtype=torch.float64)
    for (_, theirs), (_, ours) in zip(donor.tiles(), own.tiles(), strict=True):
        x, y = theirs.to(torch.float64) - means[0], ours.to(torch.float64) - means[1]
        squares[0] += x.T @ x
        squares[1] += y.T @ y
        cross += x.T @ y
    return _Joint(means[0], means[1], squares[0], squares[1], cross)


def _principal(squares: Tensor, room: int) -> Tensor | None:
    """The strongest ``room`` directions as columns; ``None`` where all of them fit."""
    if len(squares) <= room:
        return None
    directions: Tensor = torch.linalg.eigh(squares)[1]
    return directions[:, -room:].flip(1)
