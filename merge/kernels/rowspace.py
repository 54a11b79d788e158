"""One matrix that agrees with each of several on the directions that one uses: least squares over row
spaces.

With G_i = s_i A_i' A_i (n, n) and targets t_i (m, n): the loss is sum tr (M - t_i) G_i (M - t_i)'. With C =
sum G_i = Q E Q' and a start M0, M = M0 + [sum (t_i - M0) G_i] Q h(E)/E Q', where h = 1 gives the limit of
gradient descent from M0 (the minimum nearest to it), and h < 1 goes part of the way along a direction. Of C
or the products of all rows A_i the smaller is decomposed, so that nothing is larger than the matrices
together. Where the whole way is gone and no direction is null, equations are solved by Cholesky factors
instead, which take a tenth of the time of eigenvectors; C then leaves no trace of M0, and M = t_N + [sum
(t_i - t_N) G_i] C^-1, which has one product less. All in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from merge.kernels.thin import gram

NOTHING = 1e-10
"""Eigenvalues of C below this share of the largest are rounding: M stays as it began in those directions."""
BETAS = (0.9, 0.999)
EPSILON = 1e-8
MOMENTUM = 0.9

Response = Callable[[Tensor], Tensor]
"""From falling eigenvalues to how far to go along each, 0 to 1."""


@dataclass(frozen=True)
class Pull:
    """What one source asks for: ``target()`` (m, n), seen through ``rows`` (r, n) divided by ``length``.
    ``seen(a)`` is target @ a' for such rows a. Both in float64.
    """

    rows: Tensor
    length: float
    target: Callable[[], Tensor]
    seen: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _System:
    """C itself, or rows A with C = A'A; and what is missing at the start, sum (t_i - M0) G_i, or its factor
    left of A.
    """

    square: bool
    matrix: Tensor
    lacks: Tensor

    def missing(self) -> Tensor:
        """sum (t_i - M0) G_i."""
        return self.lacks if self.square else self.lacks @ self.matrix

    def times(self, left: Tensor) -> Tensor:
        """``left`` times C."""
        return left @ self.matrix if self.square else (left @ self.matrix.T) @ self.matrix


def whole(values: Tensor) -> Tensor:
    """All the way along every direction."""
    return torch.ones_like(values)


def closed(pulls: Sequence[Pull], start: Tensor, response: Response) -> Tensor:
    """M for these pulls; see the module's text."""
    if not pulls:
        return start
    everything = response is whole
    origin = pulls[-1].target() if everything and _is_square(pulls, start) else start
    system = _system(pulls, origin)
    wanted = system.matrix if system.square else gram(system.matrix.T)
    moved = _solved(wanted, system.lacks) if everything else None
    if moved is None:
        if origin is not start:
            system.lacks.addmm_(origin.sub_(start), system.matrix)
            origin = start
        moved = _along(wanted, system.lacks, response)
    return (moved if system.square else moved @ system.matrix).add_(origin)


def _solved(matrix: Tensor, lacks: Tensor) -> Tensor | None:
    """lacks @ matrix^-1; ``None`` where a direction of the matrix is null: a symmetric matrix without the
    least that its eigenvalues may be has Cholesky factors if and only if none of them is smaller.
    """
    shifted = matrix.clone()
    shifted.diagonal().sub_(NOTHING * float(matrix.diagonal().sum()))
    if int(torch.linalg.cholesky_ex(shifted).info):
        return None
    return torch.cholesky_solve(lacks.T, torch.linalg.cholesky_ex(matrix).L).T


def _along(matrix: Tensor, lacks: Tensor, response: Response) -> Tensor:
    """lacks @ Q h(E)/E Q' without null directions."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = int((values > NOTHING * values[-1]).sum())
    values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
    found: Tensor = ((lacks @ vectors) * (response(values) / values)) @ vectors.T
    return found


def descended(
    pulls: Sequence[Pull], start: Tensor, rule: Literal["adam", "momentum"], rate: float, steps: int
) -> Tensor:
    """The same loss after some steps of an optimiser from ``start``, as the methods were published."""
    found = start.clone()
    if not pulls:
        return found
    system = _system(pulls, start)
    missing, first, second = system.missing(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        slope = (system.times(found - start) - missing).mul_(2)
        if rule == "momentum":
            first.mul_(MOMENTUM).add_(slope)
            found -= first * rate
        else:
            found -= adam_step(slope, first, second, step) * rate
    return found


def adam_step(slope: Tensor, first: Tensor, second: Tensor, step: int) -> Tensor:
    """The direction of Adam's step; both moments are updated in place, and corrected for their start at 0."""
    first.mul_(BETAS[0]).add_(slope * (1 - BETAS[0]))
    second.mul_(BETAS[1]).add_(slope.square() * (1 - BETAS[1]))
    root = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
    return (first / (1 - BETAS[0] ** step)).div_(root)


def _is_square(pulls: Sequence[Pull], start: Tensor) -> bool:
    """Whether C is no larger than the products of all rows."""
    return sum(pull.rows.shape[0] for pull in pulls) >= start.shape[1]


def _system(pulls: Sequence[Pull], start: Tensor) -> _System:
    columns = start.shape[1]
    if not _is_square(pulls, start):
        every = [_rows(pull) for pull in pulls]
        lacks = [pull.seen(rows) - start @ rows.T for pull, rows in zip(pulls, every, strict=True)]
        return _System(False, torch.cat(every), torch.cat(lacks, dim=1))
    matrix, missing = start.new_zeros(columns, columns), torch.zeros_like(start)
    for pull in pulls:
        own, lack = gram(_rows(pull)), pull.target().sub_(start)
        if bool(torch.any(lack)):
            missing.addmm_(lack, own)
        matrix += own
    return _System(True, matrix, missing)


def _rows(pull: Pull) -> Tensor:
    return pull.rows.to(torch.float64, copy=True).div_(pull.length)


def flow(time: float) -> Response:
    """As far as gradient flow comes in this time."""
    return lambda values: -torch.expm1(-time * values)


def leading(share: float) -> Response:
    """All the way along this share of the directions, the largest ones; at least one."""

    def response(values: Tensor) -> Tensor:
        count = max(1, round(share * values.numel()))
        return (torch.arange(values.numel(), device=values.device) < count).to(values)

    return response


def participating(values: Tensor) -> Tensor:
    """All the way along as many directions as take part: (sum y)^2 / sum y^2, y the roots of the values."""
    roots = values.sqrt()
    count = float(roots.sum()) ** 2 / max(float(values.sum()), 1e-300)
    return leading(count / max(1, values.numel()))(values)
