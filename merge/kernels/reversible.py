"""Several things of one shape as their mean, a few shared directions and each one's coefficients: principal
components, of many small sets of vectors at a time.

At each of P positions N vectors x_i of length r: X = [x_1 - m .. x_N - m] = U S V', W = U[:, :p], c_i =
W'(x_i - m), and x_i is given back as m + W c_i. With p = min(r, N - 1) nothing is lost. In float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 12
"""Positions whose small matrices are decomposed together."""


@dataclass(frozen=True)
class Shared:
    """``mean`` (P, r), ``basis`` (P, r, p) with orthonormal columns, ``coefficients`` (P, p, N)."""

    mean: Tensor
    basis: Tensor
    coefficients: Tensor

    def restored(self, place: int) -> Tensor:
        """The vectors (P, r) of the ``place``-th thing."""
        return self.mean + (self.basis @ self.coefficients[:, :, place, None]).squeeze(-1)


def shared(vectors: Tensor, components: int) -> Shared:
    """The mean and the leading ``components`` directions of ``vectors`` (N, P, r), at each position.

    The largest entry of every direction is positive.
    """
    count, positions, length = vectors.shape
    kept = min(components, length, max(0, count - 1))
    mean = vectors.double().mean(dim=0)
    if kept == 0:
        empty = mean.new_zeros(positions, length, 0)
        return Shared(mean, empty, mean.new_zeros(positions, 0, count))
    centred = vectors.double().permute(1, 2, 0) - mean[:, :, None]
    parts = (centred[first : first + CHUNK] for first in range(0, positions, CHUNK))
    basis = torch.cat([torch.linalg.svd(part, full_matrices=False).U[:, :, :kept] for part in parts])
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    basis = basis * torch.where(largest < 0, -1.0, 1.0).double()
    return Shared(mean, basis, basis.transpose(1, 2) @ centred)


def balanced(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the same product that every pair (left R, R^-1 right) shares: U sqrt(S) and sqrt(S) V' of
    its SVD, the largest entry of each row of the latter positive, filled with zeros up to ``rank``.
    """
    m, n = left.shape[0], right.shape[1]
    found_left, found_right = left.new_zeros(m, rank).double(), right.new_zeros(rank, n).double()
    if right.shape[0] == 0:
        return found_left, found_right
    q_left, r_left = torch.linalg.qr(left.double())
    q_right, r_right = torch.linalg.qr(right.double().T)
    u, values, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    rows = vh @ q_right.T
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).double()
    roots, kept = values.sqrt(), min(rank, values.shape[0])
    found_left[:, :kept] = (q_left @ (u * roots * signs.T))[:, :kept]
    found_right[:kept] = (roots[:, None] * rows * signs)[:kept]
    return found_left, found_right
