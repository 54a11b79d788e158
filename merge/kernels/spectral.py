"""Low-rank factors of matrices that are read in blocks of rows and need not be held.

A (m, n) matrix D becomes left (m, r) times right (r, n), the best of its rank in the Frobenius norm (Eckart
and Young), both sides carrying the root of each singular value. Small matrices by their SVD; where one side
is short, by the eigenvectors of its Gram matrix; large ones by subspace iteration on D'D from a keyed random
start (Halko, Martinsson and Tropp, arXiv:0909.4061), each iteration one pass over the rows, until another
pass lowers the error no further. The error that is told is that of the projection actually made: |D|^2 -
|D V|^2. Products of factors are decomposed without being formed, by two QRs and a small SVD. All in float64.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import sqrt

import torch
from torch import Tensor

from merge.kernels.keyed import Draws
from merge.kernels.truncation import Wanted, way_of, wider, width_of

Blocks = Callable[[], Iterator[Tensor]]
"""Starts over: consecutive blocks of whole rows, each (rows, n), of any float dtype, valid until the next."""

MOST_PASSES = 24
SETTLED = 2e-3
"""A pass that lowers the squared error by less than this share of it is the last."""
NOTHING = 1e-12
"""Singular values below this share of the largest are rounding, in an SVD."""
CANCELLED = 1e-14
"""A sum of products that is smaller than this share of its terms is zero."""
GRAM_NOTHING = 1e-7
"""The same where they come from a Gram matrix, which squares them."""


@dataclass(frozen=True)
class LowRank:
    """left (m, r) @ right (r, n) in float64. ``norm`` is that of the matrix, ``error`` relative to it."""

    left: Tensor
    right: Tensor
    norm: float
    error: float

    @property
    def rank(self) -> int:
        """The rank r, 0 for a matrix of zeros."""
        return self.right.shape[0]


def decompose(blocks: Blocks, shape: tuple[int, int], wanted: Wanted, key: int) -> LowRank:
    """Factors of the (m, n) matrix that ``blocks`` gives; ``key`` seeds the random start."""
    rows, columns = shape
    most = wanted.most(rows, columns)
    width = width_of(most, wanted)
    while True:
        way = way_of(rows, columns, width)
        if way != "projection":
            return _whole(blocks, shape, wanted) if way == "svd" else _by_gram(blocks, shape, wanted)
        found = _by_projection(blocks, shape, wanted, width, key)
        if wanted.error is None or found.error <= wanted.error or found.rank >= most:
            return found
        width = wider(width, most, rows, columns)


def decompose_product(lefts: Sequence[Tensor], rights: Sequence[Tensor], wanted: Wanted) -> LowRank:
    """Factors of the sum of lefts[i] (m, r_i) @ rights[i] (r_i, n), which is never formed."""
    q_left, r_left = torch.linalg.qr(torch.cat([left.double() for left in lefts], dim=1))
    q_right, r_right = torch.linalg.qr(torch.cat([right.double() for right in rights], dim=0).T)
    u, values, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    norm = float(torch.linalg.vector_norm(values))
    if norm <= CANCELLED * float(torch.linalg.matrix_norm(r_left) * torch.linalg.matrix_norm(r_right)):
        norm = 0.0
    kept, error = choose_rank(values, norm, wanted.most(q_left.shape[0], q_right.shape[0]), wanted.error)
    roots = values[:kept].sqrt()
    left = q_left @ (u[:, :kept] * roots)
    return _signed(left, (roots[:, None] * vh[:kept]) @ q_right.T, norm, error)


def gathered(blocks: Iterator[Tensor], rows: int) -> Tensor:
    """All of a matrix of so many rows that comes in blocks."""
    first = next(blocks)
    found, row = first.new_empty(rows, first.shape[1]), 0
    for block in chain((first,), blocks):
        found[row : row + len(block)] = block
        row += len(block)
    return found


def choose_rank(
    values: Tensor, norm: float, most: int, error: float | None, nothing: float = NOTHING
) -> tuple[int, float]:
    """How many of the falling singular ``values`` to keep, and the relative error that leaves.

    What ``norm`` has beyond the values belongs to directions that are not among them.
    """
    if norm == 0.0 or values.numel() == 0:
        return 0, 0.0
    squares = values.square()
    beyond = max(0.0, norm * norm - float(squares.sum()))
    if values.numel() and beyond <= 1e-13 * norm * norm:
        beyond = 0.0
    tails = (squares.flip(0).cumsum(0).flip(0) + beyond).tolist()
    errors = [sqrt(tail) / norm for tail in tails] + [sqrt(beyond) / norm]
    real = int((values > nothing * float(values[0])).sum())
    limit = min(most, real)
    if error is None:
        return limit, errors[limit]
    kept = next((count for count in range(limit + 1) if errors[count] <= error), limit)
    return kept, errors[kept]


def _whole(blocks: Blocks, shape: tuple[int, int], wanted: Wanted) -> LowRank:
    matrix = torch.cat([block.double() for block in blocks()])
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    norm = float(torch.linalg.vector_norm(values))
    kept, error = choose_rank(values, norm, wanted.most(*shape), wanted.error)
    roots = values[:kept].sqrt()
    return _signed(u[:, :kept] * roots, roots[:, None] * vh[:kept], norm, error)


def _by_gram(blocks: Blocks, shape: tuple[int, int], wanted: Wanted) -> LowRank:
    """Every singular value, from the Gram matrix of the shorter side."""
    if shape[0] < shape[1]:
        matrix = gathered(blocks(), shape[0])
        turned = _by_gram(lambda: _column_blocks(matrix), (shape[1], shape[0]), wanted)
        return _signed(turned.right.T, turned.left.T, turned.norm, turned.error)
    gram = torch.zeros(shape[1], shape[1], dtype=torch.float64)
    for block in blocks():
        wide = block.double()
        gram += wide.T @ wide
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.flip(0).clamp(min=0).sqrt()
    norm = sqrt(max(0.0, float(gram.diagonal().sum())))
    kept, _ = choose_rank(values, norm, wanted.most(*shape), wanted.error, GRAM_NOTHING)
    return _projected(blocks, shape, vectors.flip(1)[:, :kept].contiguous(), norm)


def _column_blocks(matrix: Tensor) -> Iterator[Tensor]:
    height = max(1, (1 << 20) // matrix.shape[0])
    for first in range(0, matrix.shape[1], height):
        yield matrix[:, first : first + height].T.contiguous()


def _by_projection(blocks: Blocks, shape: tuple[int, int], wanted: Wanted, width: int, key: int) -> LowRank:
    """The leading directions by subspace iteration on D'D; see the module's text."""
    start = Draws(key, 0, (shape[1], width)).uniform().double() - 0.5
    basis = torch.linalg.qr(start).Q
    before = None
    norm, vectors, kept = 0.0, basis, 0
    for _ in range(MOST_PASSES):
        image, total = _through(blocks, basis)
        norm = sqrt(total)
        squares, turn = torch.linalg.eigh(basis.T @ image)
        values = squares.flip(0).clamp(min=0).sqrt()
        kept, error = choose_rank(values, norm, wanted.most(*shape), wanted.error, GRAM_NOTHING)
        vectors = basis @ turn.flip(1)[:, :kept]
        if before is not None and kept == before[0] and before[1] ** 2 - error**2 <= SETTLED * error**2:
            break
        before = (kept, error)
        basis = torch.linalg.qr(image).Q
    return _projected(blocks, shape, torch.linalg.qr(vectors).Q if kept else vectors, norm)


def _through(blocks: Blocks, basis: Tensor) -> tuple[Tensor, float]:
    """D'D basis, and |D|^2, in one pass."""
    image = torch.zeros_like(basis)
    total = 0.0
    for block in blocks():
        wide = block.double()
        image += wide.T @ (wide @ basis)
        total += float(wide.square().sum())
    return image, total


def _projected(blocks: Blocks, shape: tuple[int, int], vectors: Tensor, norm: float) -> LowRank:
    """D V V' for orthonormal V (n, r), with each pair of columns balanced."""
    rank = vectors.shape[1]
    left = torch.empty(shape[0], rank, dtype=torch.float64)
    row = 0
    for block in blocks():
        torch.mm(block.double(), vectors, out=left[row : row + block.shape[0]])
        row += block.shape[0]
    lengths = torch.linalg.vector_norm(left, dim=0)
    kept = lengths > 0
    left, vectors, lengths = left[:, kept], vectors[:, kept], lengths[kept]
    missed = max(0.0, norm * norm - float(lengths.square().sum()))
    error = sqrt(missed) / norm if norm and missed > 1e-13 * norm * norm else 0.0
    roots = lengths.sqrt()
    return _signed(left / roots, roots[:, None] * vectors.T, norm, error)


def _signed(left: Tensor, right: Tensor, norm: float, error: float) -> LowRank:
    """The same product, with the largest entry of every row of ``right`` positive."""
    if right.shape[0]:
        largest = right.gather(1, right.abs().argmax(dim=1, keepdim=True))
        signs = torch.where(largest < 0, -1.0, 1.0).double()
        left, right = left * signs.T, right * signs
    return LowRank(left.contiguous(), right.contiguous(), norm, error)
