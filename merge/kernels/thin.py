"""Thin singular value decompositions of matrices that are in memory, and orthonormal factors made of them.

All in float64, after a division by a power of two, so that no square overflows or vanishes. A small matrix is
decomposed as it is. A large one through the eigenvectors of the Gram matrix of its shorter side; where that
loses the orthogonality of the longer side (it squares the spread of the singular values), the SVD is taken
after all. Where few directions of a large matrix are wanted, subspace iteration from a keyed start comes
first, and stands only if every triplet it gives satisfies A v = s u. Directions whose singular value is below
``null`` of the largest are left out: in them any orthonormal vector would do, and none means anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import frexp

import torch
from torch import Tensor

from merge.kernels.keyed import Draws
from merge.kernels.truncation import OVERSAMPLE, SVD_ENTRIES

NULL = 1e-6
"""Singular values below this share of the largest count as zero, unless a caller says otherwise."""
LEAST_GRAM_NULL = 5e-7
"""A Gram matrix cannot tell smaller shares from rounding."""
PROBES = 8
SKEWED = 1e-8
"""How far from orthonormal the columns of a factor may be, per column and probe."""
RESIDUAL = 1e-10
"""How far a triplet may be from A v = s u, relative to the largest singular value."""
PASSES = 3
LEAST_SIDE = 512
STRIPES = 8
"""Parts of a large Gram matrix."""
START = 0x7EC0_11E5_0A5B_A515


@dataclass(frozen=True)
class Thin:
    """left (m, r) times diag(values) times right (n, r) transposed: orthonormal columns, falling values > 0.

    The largest entry of every column of ``right`` is positive. All float64, on the device of the matrix.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """How many directions there are."""
        return self.values.shape[0]

    def product(self, values: Tensor | None = None) -> Tensor:
        """The matrix (m, n), with other ``values`` where they are given."""
        return (self.left * (self.values if values is None else values)) @ self.right.T

    def to(self, like: Tensor) -> "Thin":
        """The same in another tensor's dtype, for products that need no more digits than that has."""
        return Thin(self.left.to(like), self.values.to(like), self.right.to(like))

    def first(self, count: int) -> "Thin":
        """The leading directions alone."""
        return Thin(self.left[:, :count], self.values[:count], self.right[:, :count])


def thin(matrix: Tensor, most: int | None = None, null: float = NULL) -> Thin:
    """The leading directions of an (m, n) matrix of any float dtype: at most ``most``, none that are null."""
    rows, columns = matrix.shape
    most = min(rows, columns) if most is None else min(most, rows, columns)
    if most <= 0 or not bool(torch.any(matrix)):
        return _nothing(matrix)
    low, high = torch.aminmax(matrix)
    scale = 2.0 ** max(-1000, min(1000, frexp(max(-float(low), float(high)))[1]))
    tall = rows >= columns
    upright = (matrix if tall else matrix.T).to(torch.float64, copy=True).div_(scale)
    found = None
    if _few(upright, most):
        found = _by_projection(upright, most, null)
    if found is None and rows * columns > SVD_ENTRIES and null >= LEAST_GRAM_NULL:
        found = _by_gram(upright, most, null)
    long, values, short = found or _by_svd(upright, most, null)
    return _signed(long, values * scale, short) if tall else _signed(short, values * scale, long)


def orthonormal(columns: Tensor, null: float = NULL) -> Tensor:
    """The nearest (m, r) matrix with orthonormal columns: U V' of its SVD (the polar factor), without null
    directions, in float64. Where columns depend on each other, or are more than rows, it is a partial
    isometry.
    """
    if columns.shape[1] == 0 or not bool(torch.any(columns)):
        return torch.zeros_like(columns, dtype=torch.float64)
    if columns.numel() <= SVD_ENTRIES or null < LEAST_GRAM_NULL:
        left, values, right = torch.linalg.svd(columns.double(), full_matrices=False)
        kept = int((values > null * values[0]).sum())
        small: Tensor = left[:, :kept] @ right[:kept]
        return small
    wide = columns.double()
    tall = wide.shape[0] >= wide.shape[1]
    squares, vectors = torch.linalg.eigh(gram(wide if tall else wide.T))
    kept = int((squares > null * null * squares[-1]).sum())
    vectors, roots = vectors[:, -kept:], squares[-kept:].sqrt()
    factor: Tensor = (vectors / roots) @ vectors.T
    return wide @ factor if tall else factor @ wide


def column_basis(parts: Sequence[Tensor], null: float = NULL) -> Tensor:
    """An orthonormal (m, r) basis of what the columns of several (m, n_i) matrices span, in float64: the left
    singular vectors of all of them side by side, the strongest first, without null directions.
    """
    rows, columns = parts[0].shape[0], sum(part.shape[1] for part in parts)
    if rows * columns <= SVD_ENTRIES or rows > columns or null < LEAST_GRAM_NULL:
        return thin(torch.cat(list(parts), dim=1), null=null).left
    products = torch.zeros(rows, rows, dtype=torch.float64, device=parts[0].device)
    for part in parts:
        products += gram(part.double().T)
    squares, vectors = torch.linalg.eigh(products)
    kept = int((squares > null * null * squares[-1]).sum()) if float(squares[-1]) > 0 else 0
    basis: Tensor = vectors.flip(1)[:, :kept].contiguous()
    return basis


def gram(upright: Tensor) -> Tensor:
    """The products (n, n) of all columns of an (m, n) matrix with each other. They are the same both ways, so
    that of many columns little more than half is computed.
    """
    columns = upright.shape[1]
    if columns < LEAST_SIDE:
        return upright.T @ upright
    found = upright.new_empty(columns, columns)
    width = -(-columns // STRIPES)
    for first in range(0, columns, width):
        last = min(first + width, columns)
        torch.mm(upright[:, first:last].T, upright[:, first:], out=found[first:last, first:])
        found[last:, first:last] = found[first:last, last:].T
    return found


def _few(upright: Tensor, most: int) -> bool:
    """Whether following some directions beats all eigenvectors: those cost more where products are fast."""
    share = 4 if upright.is_cuda else 8
    return upright.shape[1] >= LEAST_SIDE and share * (most + OVERSAMPLE) <= upright.shape[1]


Found = tuple[Tensor, Tensor, Tensor]


def _by_svd(upright: Tensor, most: int, null: float) -> Found:
    left, values, right = torch.linalg.svd(upright, full_matrices=False)
    kept = min(most, int((values > null * values[0]).sum()))
    return left[:, :kept], values[:kept], right[:kept].T


def _by_gram(upright: Tensor, most: int, null: float) -> Found | None:
    """``None`` where the spread of the singular values was too much for it."""
    squares, vectors = torch.linalg.eigh(gram(upright))
    kept = min(most, int((squares > null * null * squares[-1]).sum()))
    short = vectors.flip(1)[:, :kept].contiguous()
    del vectors
    long = upright @ short
    values = torch.linalg.vector_norm(long, dim=0)
    long /= values
    return (long, values, short) if _is_orthonormal(long) else None


def _is_orthonormal(columns: Tensor) -> bool:
    """Whether columns' columns is the identity, as a few sign vectors see it."""
    count = columns.shape[1]
    probes = _keyed(count, PROBES, columns.device).sign()
    off = columns.T @ (columns @ probes) - probes
    return float(off.square().mean().sqrt()) <= SKEWED


def _by_projection(upright: Tensor, most: int, null: float) -> Found | None:
    """``None`` where a few passes do not make the triplets exact, as in a flat spectrum."""
    width = most + OVERSAMPLE
    basis = torch.linalg.qr(_keyed(upright.shape[1], width, upright.device)).Q
    image = upright @ basis
    for _ in range(PASSES):
        long = torch.linalg.qr(image).Q
        back, small = torch.linalg.qr(upright.T @ long)
        left, values, right = torch.linalg.svd(small.T, full_matrices=False)
        long, short = long @ left, back @ right.T
        image = upright @ short
        kept = min(most, int((values > null * values[0]).sum()))
        miss = torch.linalg.vector_norm(image[:, :kept] - long[:, :kept] * values[:kept], dim=0)
        if float(miss.max()) <= RESIDUAL * float(values[0]):
            return long[:, :kept].contiguous(), values[:kept], short[:, :kept].contiguous()
    return None


def _keyed(rows: int, columns: int, device: torch.device) -> Tensor:
    """Fixed numbers between -1/2 and 1/2, none of them zero, that depend on the shape alone."""
    return Draws(START, 0, (rows, columns), device).uniform().double() - (0.5 + 2.0**-26)


def _signed(left: Tensor, values: Tensor, right: Tensor) -> Thin:
    largest = right.gather(0, right.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(right)
    return Thin(left.mul_(signs), values, right.mul_(signs))


def _nothing(matrix: Tensor) -> Thin:
    rows, columns = matrix.shape
    empty = torch.zeros(max(rows, columns), 0, dtype=torch.float64, device=matrix.device)
    return Thin(empty[:rows], empty[0] if rows and columns else empty.new_zeros(0), empty[:columns])
