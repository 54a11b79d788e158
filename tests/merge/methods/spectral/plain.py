"""What the tests of the spectral methods share: matrices of every kind, and SVDs in numpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.merge.whole import merge_one

Array = NDArray[np.float64]
SHAPES = [(6, 6), (9, 5), (5, 9), (12, 31), (31, 12)]
LARGE = [(300, 260), (240, 330)]
"""Large enough for the Gram matrix to be decomposed in place of the matrix."""


def deltas_of(count: int, shape: tuple[int, ...], *, rank: int | None = None, seed: int = 3) -> list[Tensor]:
    """Random task vectors in float64; of lower rank where asked."""
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return [torch.randn(shape, generator=generator).double() for _ in range(count)]
    rows, columns = shape
    sides = [(rows, rank), (rank, columns)]
    return [
        torch.linalg.multi_dot([torch.randn(side, generator=generator).double() for side in sides])
        for _ in range(count)
    ]


def merged(name: str, deltas: Sequence[Tensor], **more: Any) -> Tensor:
    """The merged task vector over a base of zeros."""
    weights = more.pop("weights", None)
    return merge_one([(name, more)], torch.zeros_like(deltas[0]), deltas, weights=weights)


def arrays(deltas: Sequence[Tensor]) -> list[Array]:
    """In numpy."""
    return [delta.double().numpy() for delta in deltas]


def parts(matrix: Array, null: float = 1e-6) -> tuple[Array, Array, Array]:
    """U (m, r), s (r), V (n, r), without null directions."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    kept = values > null * values[0] if values.size and values[0] > 0 else np.zeros(values.shape, dtype=bool)
    return left[:, kept], values[kept], right[kept].T


def polar(matrix: Array) -> Array:
    """U V' without null directions."""
    left, _, right = parts(matrix)
    return left @ right.T


def close(found: Tensor, wanted: Array | Tensor, tolerance: float = 1e-8) -> bool:
    """Whether no entry is further off than this."""
    other = wanted if isinstance(wanted, Tensor) else torch.from_numpy(np.ascontiguousarray(wanted))
    return bool((found.double() - other.double()).abs().max() <= tolerance)


def rotated(count: int, size: int, seed: int = 5) -> list[Tensor]:
    """Task vectors of rank 2 whose rows and columns lie in spaces of their own, orthogonal to the others'."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q for _ in range(2))
    found = []
    for place in range(count):
        span = slice(2 * place, 2 * place + 2)
        values = torch.tensor([2.0 + place, 1.0]).double()
        found.append((left[:, span] * values) @ right[:, span].T)
    return found
