"""How a row for an unknown token is made from rows that a model has: the arithmetic, on streamed rows.

A donor knows both the new token and tokens that the model knows too (the shared ones). What the new token is
made of in the donor's space (which shared tokens, in what amounts) is carried over to the model's space. All
of it depends on the rows alone: tiles and batches have fixed sizes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from merge.kernels.keyed import Draws, key_of

ENOUGH = 1e-6
"""A target is reached when so little of its length is left over."""
DEPENDENT = 1e-7
NARROWNESS = 1e-5
"""Share of the covariance in ``john_hewitt``: new rows lie close to the mean."""


class Rows(Protocol):
    """Rows of one tensor: ``count`` of them, ``width`` numbers each."""

    count: int
    width: int

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        """First position and float32 rows (a fixed number at a time, width), all in order."""
        ...

    def take(self, positions: Sequence[int]) -> Tensor:
        """float32 rows (len(positions), width)."""
        ...


@dataclass(frozen=True)
class Combination:
    """For each target: positions of shared rows (-1 for none), their amounts, and what is left over.

    ``chosen`` int64 and ``amounts`` float64 are (targets, k); ``errors`` is the length of the rest over the
    length of the target, in the donor's space.
    """

    chosen: Tensor
    amounts: Tensor
    errors: Tensor

    def apply(self, rows: Rows) -> Tensor:
        """The same combination of other rows: float64 (targets, width), terms added in order."""
        made = torch.zeros(self.chosen.shape[0], rows.width, dtype=torch.float64)
        for place in range(self.chosen.shape[1]):
            picked = rows.take(self.chosen[:, place].clamp(min=0).tolist()).to(torch.float64)
            made += picked.mul_(self.amounts[:, place : place + 1])
        return made


@dataclass(frozen=True)
class Moments:
    """Mean (width) of rows and, where asked for, their spread: float64 deviation (width) or factor
    (width, width) with factor times its transpose the covariance.
    """

    mean: Tensor
    deviation: Tensor | None = None
    factor: Tensor | None = None


def lengths(rows: Rows) -> Tensor:
    """float32 Euclidean lengths of all rows."""
    found = torch.empty(rows.count)
    for first, tile in rows.tiles():
        found[first : first + len(tile)] = tile.norm(dim=1)
    return found


def orthogonal_pursuit(targets: Tensor, atoms: Rows, sizes: Tensor, k: int) -> Combination:
    """Orthogonal matching pursuit: each step takes the atom nearest in direction to what is left, then fits
    all taken atoms anew (Pati et al., 1993; for tokens: Goddard and Fernandes Neto, arXiv:2506.06607).

    ``targets`` is (targets, width), ``sizes`` are the atoms' lengths; at most ``k`` atoms a target.
    """
    left = targets.to(torch.float64)
    count, width = left.shape
    most = min(k, atoms.count)
    goal = left.norm(dim=1)
    basis = torch.zeros(count, most, width, dtype=torch.float64)
    upper = torch.eye(most, dtype=torch.float64).repeat(count, 1, 1)
    shares = torch.zeros(count, most, dtype=torch.float64)
    chosen = torch.full((count, most), -1, dtype=torch.int64)
    active = goal > 0
    for step in range(most):
        if not bool(active.any()):
            break
        best = nearest_direction(left, atoms, sizes, chosen[:, :step])
        atom = atoms.take(best.clamp(min=0).tolist()).to(torch.float64)
        rest, along = _orthogonal(atom, basis[:, :step])
        length = rest.norm(dim=1)
        active = active & (best >= 0) & (length > DEPENDENT * atom.norm(dim=1))
        basis[:, step] = torch.where(active[:, None], rest / length[:, None], 0.0)
        upper[:, :step, step] = torch.where(active[:, None], along, 0.0)
        upper[:, step, step] = torch.where(active, length, 1.0)
        shares[:, step] = (basis[:, step] * left).sum(dim=1)
        chosen[:, step] = torch.where(active, best, -1)
        left = left - shares[:, step, None] * basis[:, step]
        active = active & (left.norm(dim=1) > ENOUGH * goal)
    amounts = torch.linalg.solve_triangular(upper, shares.unsqueeze(2), upper=True).squeeze(2)
    return Combination(chosen, amounts, relative(left, goal))


def moments(rows: Rows, spread: str | None = None) -> Moments:
    """The mean of all rows; ``spread`` is ``deviation`` (by column) or ``covariance`` (its factor, narrow).

    The covariance is that of Hewitt, "Initializing New Word Embeddings for Pretrained Language Models"
    (2021), scaled by ``NARROWNESS``.
    """
    total = torch.zeros(rows.width, dtype=torch.float64)
    for _, tile in rows.tiles():
        total += tile.to(torch.float64).sum(dim=0)
    mean = total / max(rows.count, 1)
    if spread is None:
        return Moments(mean)
    if spread == "deviation":
        squares = torch.zeros_like(total)
        for _, tile in rows.tiles():
            squares += (tile.to(torch.float64) - mean).square_().sum(dim=0)
        return Moments(mean, deviation=(squares / max(rows.count, 1)).sqrt_())
    covariance = torch.zeros(rows.width, rows.width, dtype=torch.float64)
    for _, tile in rows.tiles():
        centred = tile.to(torch.float64) - mean
        covariance += centred.T @ centred
    covariance.mul_(NARROWNESS / max(rows.count, 1))
    covariance.diagonal().add_(1e-12 * float(covariance.diagonal().mean()) + 1e-300)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    return Moments(mean, factor=factor) if int(failed) == 0 else moments(rows, "deviation")


def drawn(known: Moments, seed: int, name: str, row: int) -> Tensor:
    """A row (width) of a normal distribution, keyed by seed, name and row; the mean where nothing spreads."""
    width = known.mean.numel()
    normal = Draws(key_of(seed, "token", name), row * width, (width,)).normal()
    if known.factor is not None:
        return known.mean + known.factor @ normal
    return known.mean if known.deviation is None else known.mean + known.deviation * normal


def nearest_direction(left: Tensor, atoms: Rows, sizes: Tensor, taken: Tensor) -> Tensor:
    """Position of the atom with the greatest cosine to what is left, either way; -1 where there is none."""
    plain = left.to(torch.float32)
    best = torch.zeros(len(left))
    found = torch.full((len(left),), -1, dtype=torch.int64)
    targets = torch.arange(len(left))[:, None].expand_as(taken)
    for first, tile in atoms.tiles():
        size = sizes[first : first + len(tile)]
        scores = (plain @ tile.T).abs_().div_(torch.where(size > 0, size, torch.inf))
        inside = (taken >= first) & (taken < first + len(tile))
        scores[targets[inside], taken[inside] - first] = -1
        score, at = scores.max(dim=1)
        better = score > best
        best, found = torch.where(better, score, best), torch.where(better, at + first, found)
    return found


def _orthogonal(atoms: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """What of each atom (targets, width) is orthogonal to its basis (targets, n, width), and its components
    in it; done twice, which is enough.
    """
    rest, along = atoms.clone(), torch.zeros(basis.shape[:2], dtype=torch.float64)
    for _ in range(2):
        part = torch.bmm(basis, rest.unsqueeze(2)).squeeze(2)
        rest -= torch.bmm(part.unsqueeze(1), basis).squeeze(1)
        along += part
    return rest, along


def relative(left: Tensor, goal: Tensor) -> Tensor:
    """What is left over as a share of the goal's length; nothing of a goal that is zero."""
    return torch.where(goal > 0, left.norm(dim=1) / goal, 0.0)
