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
SPREAD = 1e-4
"""Down to this share of the largest, a Gram matrix gives singular values to eight digits and more."""
EVEN = 1e-2
"""Where no singular value is below this share, a product with the inverse of their roots keeps its digits."""
LEAST_SIDE = 512
STRIPES = 8
"""Parts of a large Gram matrix."""
START = 0x7EC0_11E5_0A5B_A515


@dataclass(frozen=True)
class Thin:
    """left (m, r) times diag(values) times right (n, r) transposed: orthonormal columns, falling values > 0.

    The largest entry of every column of the shorter side is positive. Both have the device of the matrix.
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


def thin(
    matrix: Tensor, most: int | None = None, null: float = NULL, dtype: torch.dtype = torch.float64
) -> Thin:
    """The leading directions of an (m, n) matrix of any float dtype: at most ``most``, none that are null.

    ``dtype`` is that of the product which gives the longer side of a large matrix. What float32 loses there
    is what rounding the matrix to float32 would lose; where it shows, it is float64 after all.
    """
    rows, columns = matrix.shape
    most = min(rows, columns) if most is None else min(most, rows, columns)
    if most <= 0 or not bool(torch.any(matrix)):
        return _nothing(matrix)
    tall = rows >= columns
    upright, scale = _scaled(matrix if tall else matrix.T)
    found = None
    if _few(upright, most):
        found = _by_projection(upright, most, null)
    if found is None and _by_products(matrix, null):
        found = _by_gram(upright, most, null, dtype)
    long, values, short = found or _by_svd(upright, most, null)
    long, short = _signed(long, short)
    return Thin(long, values * scale, short) if tall else Thin(short, values * scale, long)


def divided(matrix: Tensor, most: int, null: float, dtype: torch.dtype) -> tuple[Thin, Tensor]:
    """``thin`` of an (m, n) matrix with m <= n, and an orthonormal basis (m, m - r) of all that is orthogonal
    to its left side, null directions of the matrix among it. ``dtype`` is as in ``thin``.
    """
    upright, scale = _scaled(matrix.T)
    if not bool(torch.any(upright)):
        return _nothing(matrix), torch.eye(matrix.shape[0], dtype=torch.float64, device=matrix.device)
    if not _by_products(matrix, null):
        long, values, short = torch.linalg.svd(upright, full_matrices=False)
        kept, short = min(most, int((values > null * values[0]).sum())), short.T
        return Thin(short[:, :kept], values[:kept] * scale, long[:, :kept]), short[:, kept:]
    squares, vectors = torch.linalg.eigh(gram(upright))
    kept = min(most, int((squares > null * null * squares[-1]).sum()))
    vectors = vectors.flip(1)
    short, beyond = vectors[:, :kept].contiguous(), vectors[:, kept:].contiguous()
    even = bool(kept) and float(squares[-kept]) >= EVEN * EVEN * float(squares[-1])
    long = upright.to(dtype) @ short.to(dtype) if even else upright @ short
    values = torch.linalg.vector_norm(long, dim=0, dtype=torch.float64)
    return Thin(short, values * scale, long.div_(values.to(long))), beyond


def isometry(matrix: Tensor, null: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """U V' of an (m, n) matrix and its singular values (in any order), without null directions. The products
    are in ``dtype`` where that keeps enough digits.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    if not _by_products(matrix, null) or not bool(torch.any(matrix)):
        found = thin(matrix, null=null)
        return found.left.to(dtype) @ found.right.to(dtype).T, found.values
    upright, scale = _scaled(matrix if tall else matrix.T)
    squares, short = _spectrum(upright, upright.shape[1], null)
    values, spread = squares.sqrt(), float((squares[-1] / squares[0]).sqrt())
    if spread >= SPREAD:
        factor = gram((short / values.sqrt()).T)
        turned = upright.to(dtype) @ factor.to(dtype) if spread >= EVEN else upright @ factor
    else:
        left, values, right = _lengthened(upright, short) or _by_svd(upright, upright.shape[1], null)
        turned = left.to(dtype) @ right.to(dtype).T
    return turned if tall else turned.T, values * scale


def evened(matrix: Tensor, null: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """An (m, n) matrix with the mean of its singular values in place of each, null directions left out of
    both; ``dtype`` is as in ``isometry``.
    """
    even, values = isometry(matrix, null, dtype)
    return even.mul_(values.double().mean()) if values.numel() else even


@dataclass(frozen=True)
class Straight:
    """``orthonormal`` of (n, r) columns, for products with it: the columns times a factor (r, r), or as they
    are. They have the dtype of the product.
    """

    columns: Tensor
    factor: Tensor | None

    def after(self, left: Tensor) -> Tensor:
        """left (m, r) times these columns transposed."""
        turned = left if self.factor is None else left.double() @ self.factor
        return turned.to(self.columns) @ self.columns.T


@dataclass(frozen=True)
class Untangled:
    """The leading directions of several (m, n) matrices, turned so that those of different matrices are as
    near to orthogonal as they can be: left (m, r) and right (n, r), of each matrix as many columns as its
    ``count``. Factors of the matrices change nothing but the ``values``.
    """

    left: Tensor
    values: Tensor
    counts: tuple[int, ...]
    right: Straight

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        parts = (self.left, self.values, self.right.columns, self.right.factor)
        return sum(part.nbytes for part in parts if part is not None)

    def total(self, factors: Sequence[float]) -> Tensor:
        """The sum (m, n) of the matrices, each times its factor."""
        each = zip(torch.split(self.values, list(self.counts)), factors, strict=True)
        return self.right.after(self.left * torch.cat([values * factor for values, factor in each]))


def untangled(
    matrices: Sequence[Tensor], counts: Sequence[int], null: float, dtype: torch.dtype = torch.float64
) -> Untangled:
    """The leading directions of each matrix, as many as its count; values stay. ``dtype`` is that of the
    largest product where that keeps enough digits.
    """
    parts = [thin(matrix, count, null) for matrix, count in zip(matrices, counts, strict=True)]
    left = orthonormal(torch.cat([part.left for part in parts], dim=1), null)
    right = straightened(torch.cat([part.right for part in parts], dim=1), null, dtype)
    values = torch.cat([part.values for part in parts])
    return Untangled(left, values, tuple(part.rank for part in parts), right)


def _scaled(upright: Tensor) -> tuple[Tensor, float]:
    """A copy in float64, divided by a power of two that makes its largest entry about one; and that power."""
    low, high = torch.aminmax(upright)
    scale = 2.0 ** max(-1000, min(1000, frexp(max(-float(low), float(high)))[1]))
    return upright.to(torch.float64, copy=True).div_(scale), scale


def _by_products(matrix: Tensor, null: float) -> bool:
    """Whether a Gram matrix is decomposed in place of the matrix."""
    return matrix.numel() > SVD_ENTRIES and null >= LEAST_GRAM_NULL


def orthonormal(columns: Tensor, null: float = NULL) -> Tensor:
    """The nearest (m, r) matrix with orthonormal columns: U V' of its SVD (the polar factor), without null
    directions, in float64. Where columns depend on each other, or are more than rows, it is a partial
    isometry.
    """
    if columns.shape[1] == 0 or not bool(torch.any(columns)):
        return torch.zeros_like(columns, dtype=torch.float64)
    if not _by_products(columns, null):
        left, values, right = torch.linalg.svd(columns.double(), full_matrices=False)
        kept = int((values > null * values[0]).sum())
        small: Tensor = left[:, :kept] @ right[:kept]
        return small
    wide = columns.double()
    if wide.shape[0] < wide.shape[1]:
        return _straightening(wide.T, null)[0] @ wide
    return wide @ _straightening(wide, null)[0]


def beside_orthonormal(left: Tensor, columns: Tensor, null: float, dtype: torch.dtype) -> Tensor:
    """left (m, r) @ orthonormal(columns (n, r)) transposed, the largest product in ``dtype`` where that keeps
    enough digits.
    """
    return straightened(columns, null, dtype).after(left)


def straightened(columns: Tensor, null: float, dtype: torch.dtype) -> Straight:
    """``orthonormal`` of (n, r) columns, for products in ``dtype`` where that keeps enough digits."""
    if columns.shape[0] < columns.shape[1] or not _by_products(columns, null):
        return Straight(orthonormal(columns, null).to(dtype), None)
    wide = columns.double()
    factor, even = _straightening(wide, null)
    return Straight(wide.to(dtype) if even else wide, factor)


def _straightening(upright: Tensor, null: float) -> tuple[Tensor, bool]:
    """V diag(1 / s) V' of a matrix U diag(s) V', without null directions; and whether no s is small."""
    squares, vectors = _spectrum(upright, upright.shape[1], null)
    values = squares.sqrt()
    return gram((vectors / values.sqrt()).T), float(values[-1]) >= EVEN * float(values[0])


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


def _by_gram(upright: Tensor, most: int, null: float, dtype: torch.dtype) -> Found | None:
    """``None`` where the spread of the singular values was too much for it."""
    squares, short = _spectrum(upright, most, null)
    if dtype == upright.dtype or float(squares[-1]) < SPREAD * SPREAD * float(squares[0]):
        return _lengthened(upright, short)
    values, short = squares.sqrt(), short.to(dtype)
    return (upright.to(dtype) @ short).div_(values.to(dtype)), values, short


def _spectrum(upright: Tensor, most: int, null: float) -> tuple[Tensor, Tensor]:
    """The leading squared singular values, falling, and their vectors on the short side."""
    squares, vectors = torch.linalg.eigh(gram(upright))
    kept = min(most, int((squares > null * null * squares[-1]).sum()))
    return squares.flip(0)[:kept], vectors.flip(1)[:, :kept].contiguous()


def _lengthened(upright: Tensor, short: Tensor) -> Found | None:
    """With the long side; ``None`` where its columns are not orthonormal."""
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


def _signed(long: Tensor, short: Tensor) -> tuple[Tensor, Tensor]:
    largest = short.gather(0, short.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(short)
    return long.mul_(signs), short.mul_(signs)


def _nothing(matrix: Tensor) -> Thin:
    rows, columns = matrix.shape
    empty = torch.zeros(max(rows, columns), 0, dtype=torch.float64, device=matrix.device)
    return Thin(empty[:rows], empty[0] if rows and columns else empty.new_zeros(0), empty[:columns])
