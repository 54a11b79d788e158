"""Matching pursuit with atoms that may be turned as rotary embeddings turn vectors: what a token means at
another position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from merge.arch.rope import Spin
from merge.tokenizer.approximate import Combination, Rows, nearest_direction, relative

_TINY = 1e-300


@dataclass(frozen=True)
class Turned:
    """A combination of atoms, each turned by a position: float64 ``positions`` (targets, k)."""

    plain: Combination
    positions: Tensor

    @property
    def errors(self) -> Tensor:
        """What is left over of each target, as a share of its length."""
        return self.plain.errors

    def apply(self, rows: Rows, spin: Spin) -> Tensor:
        """The same combination of other rows, turned as their model turns: float64 (targets, width)."""
        made = torch.zeros(self.plain.chosen.shape[0], rows.width, dtype=torch.float64)
        for place in range(self.plain.chosen.shape[1]):
            picked = rows.take(self.plain.chosen[:, place].clamp(min=0).tolist()).to(torch.float64)
            made += turned(picked, self.positions[:, place], spin) * self.plain.amounts[:, place : place + 1]
        return made


def turning_pursuit(targets: Tensor, atoms: Rows, sizes: Tensor, k: int, spin: Spin) -> Turned:
    """Matching pursuit (Mallat and Zhang, 1993): each step takes the atom nearest in direction to what is
    left and turns it by the position that brings it nearest; in the end all amounts are fitted anew.
    """
    left = targets.to(torch.float64)
    goal, count, most = left.norm(dim=1), len(left), min(k, atoms.count)
    chosen = torch.full((count, most), -1, dtype=torch.int64)
    positions = torch.zeros(count, most, dtype=torch.float64)
    columns = torch.zeros(count, left.shape[1], most, dtype=torch.float64)
    for step in range(most):
        best = nearest_direction(left, atoms, sizes, chosen[:, :step])
        atom = atoms.take(best.clamp(min=0).tolist()).to(torch.float64)
        at = _position(atom, left, spin)
        column = torch.where((best >= 0)[:, None], turned(atom, at, spin), 0.0)
        chosen[:, step], positions[:, step], columns[:, :, step] = best, at, column
        amount = (left * column).sum(dim=1) / column.square().sum(dim=1).clamp(min=_TINY)
        left = left - amount[:, None] * column
    wanted = targets.to(torch.float64).unsqueeze(2)
    amounts = torch.linalg.lstsq(columns, wanted, driver="gelsd").solution.squeeze(2)
    rest = (wanted - columns @ amounts.unsqueeze(2)).squeeze(2)
    return Turned(Combination(chosen, amounts, relative(rest, goal)), positions)


def turned(rows: Tensor, positions: Tensor, spin: Spin) -> Tensor:
    """Rows (n, width) turned by their positions (n), halves of every head in pairs."""
    first, second = _halves(rows, spin)
    angles = positions[:, None, None] * _speeds(rows.shape[1], spin)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=2).reshape(rows.shape)


def _position(atoms: Tensor, left: Tensor, spin: Spin) -> Tensor:
    """The position whose angles are nearest to those that turn an atom into what is left, or into its
    opposite, whichever is nearer to zero.
    """
    speeds = _speeds(atoms.shape[1], spin)
    (a, b), (c, d) = _halves(atoms, spin), _halves(left, spin)
    cross, dot = a * d - b * c, a * c + b * d
    scale = spin.heads * float(speeds.square().sum())
    there = (torch.atan2(cross, dot) * speeds).sum(dim=(1, 2)) / scale
    back = (torch.atan2(-cross, -dot) * speeds).sum(dim=(1, 2)) / scale
    return torch.where(there.abs() < back.abs(), there, back)


def _halves(rows: Tensor, spin: Spin) -> tuple[Tensor, Tensor]:
    found = rows.reshape(len(rows), spin.heads, 2, -1)
    return found[:, :, 0], found[:, :, 1]


def _speeds(width: int, spin: Spin) -> Tensor:
    size = width // spin.heads
    return spin.theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
