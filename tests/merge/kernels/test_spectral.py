from collections.abc import Callable, Iterator
from math import sqrt

import pytest
import torch
from torch import Tensor

from merge.kernels import spectral
from merge.kernels.spectral import LowRank, decompose, decompose_product
from merge.kernels.truncation import Wanted, block_rows, bytes_of, product_bytes, way_of, wider, width_of

Decompose = Callable[[Tensor, Wanted], LowRank]


def blocks(matrix: Tensor, rows: int = 7) -> Callable[[], Iterator[Tensor]]:
    return lambda: (matrix[row : row + rows] for row in range(0, len(matrix), rows))


def falling(rows: int, columns: int, power: float = 0.7) -> Tensor:
    """float32, singular values 1, 2^-power, 3^-power, ..."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    short = min(rows, columns)
    u, v = (torch.linalg.qr(torch.randn(n, short, generator=generator).double()).Q for n in (rows, columns))
    return ((u * torch.arange(1, short + 1) ** -power) @ v.T).float()


def by_projection(matrix: Tensor, wanted: Wanted) -> LowRank:
    shape = (matrix.shape[0], matrix.shape[1])
    width = min(min(shape), wanted.most(*shape) + 16)
    return spectral._by_projection(blocks(matrix), shape, wanted, width, 5)


WAYS: dict[str, Decompose] = {
    "svd": lambda m, w: spectral._whole(blocks(m), (m.shape[0], m.shape[1]), w),
    "gram": lambda m, w: spectral._by_gram(blocks(m), (m.shape[0], m.shape[1]), w),
    "projection": by_projection,
}


def relative(matrix: Tensor, low: LowRank) -> float:
    return float((matrix.double() - low.left @ low.right).norm() / matrix.double().norm())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (90, 90)])
def test_error_is_that_of_the_best_of_its_rank_and_is_told_truly(way: str, shape: tuple[int, int]) -> None:
    matrix = falling(*shape)
    low = WAYS[way](matrix, Wanted(8))
    values = torch.linalg.svdvals(matrix.double())
    best = float(values[8:].norm() / values.norm())
    assert low.rank == 8
    assert best - 1e-9 <= low.error <= best * 1.002
    assert relative(matrix, low) == pytest.approx(low.error, abs=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_error_asked_for_gives_the_least_rank_that_reaches_it(way: str) -> None:
    matrix = falling(60, 40)
    values = torch.linalg.svdvals(matrix.double())
    errors = [float(values[rank:].norm() / values.norm()) for rank in range(41)]
    least = next(rank for rank, error in enumerate(errors) if error <= 0.25)
    low = WAYS[way](matrix, Wanted(40, 0.25))
    assert low.rank == least
    assert relative(matrix, low) <= 0.25


@pytest.mark.parametrize("way", WAYS)
def test_rank_of_a_product_is_found_and_nothing_is_lost(way: str) -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = (
        torch.randn(70, 5, generator=generator).double() @ torch.randn(5, 50, generator=generator).double()
    )
    low = WAYS[way](matrix, Wanted(30, 1e-6))
    assert low.rank == 5
    assert relative(matrix, low) < 1e-7


@pytest.mark.parametrize("way", WAYS)
def test_zeros_have_no_rank(way: str) -> None:
    low = WAYS[way](torch.zeros(12, 9), Wanted(4))
    assert (low.rank, low.norm, low.error) == (0, 0.0, 0.0)
    assert low.left.shape == (12, 0)


def test_worked_number() -> None:
    low = decompose(blocks(torch.diag(torch.tensor([3.0, 1.0]))), (2, 2), Wanted(1), 0)
    assert low.error == pytest.approx(1 / sqrt(10))
    assert low.norm == pytest.approx(sqrt(10))
    assert torch.allclose(low.left, torch.tensor([[sqrt(3)], [0.0]]).double())
    assert torch.allclose(low.right, torch.tensor([[sqrt(3), 0.0]]).double())


def test_large_matrix_is_projected_within_two_thousandths_of_the_best() -> None:
    matrix = falling(1400, 1200)
    assert way_of(1400, 1200, width_of(24, Wanted(24))) == "projection"
    low = decompose(blocks(matrix, block_rows(1200)), (1400, 1200), Wanted(24), 1)
    values = torch.arange(1, 1201).double() ** -0.7
    best = float(values[24:].norm() / values.norm())
    assert best - 1e-6 <= low.error <= best * 1.002


def test_error_beyond_the_first_directions_widens_the_projection() -> None:
    matrix = falling(1100, 1050, power=0.7)
    low = decompose(blocks(matrix, 900), (1100, 1050), Wanted(150, 0.32), 1)
    values = torch.arange(1, 1051).double() ** -0.7
    errors = [float(values[rank:].norm() / values.norm()) for rank in range(301)]
    least = next(rank for rank, error in enumerate(errors) if error <= 0.32)
    assert 64 < least <= low.rank <= least + 1
    assert low.error <= 0.32


def test_same_key_same_bits() -> None:
    matrix = falling(300, 200)
    first, again = (by_projection(matrix, Wanted(8)) for _ in range(2))
    assert torch.equal(first.left, again.left)
    assert torch.equal(first.right, again.right)


def test_product_is_decomposed_without_cross_terms_and_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    lefts = [torch.randn(30, rank, generator=generator) for rank in (3, 5)]
    rights = [torch.randn(rank, 20, generator=generator) for rank in (3, 5)]
    dense = sum(left.double() @ right.double() for left, right in zip(lefts, rights, strict=True))
    whole = decompose_product(lefts, rights, Wanted(64, 0.0))
    assert whole.rank == 8
    assert torch.allclose(whole.left @ whole.right, torch.as_tensor(dense), atol=1e-12)
    cut = decompose_product(lefts, rights, Wanted(4))
    values = torch.linalg.svdvals(torch.as_tensor(dense))
    assert cut.error == pytest.approx(float(values[4:].norm() / values.norm()))


def test_product_and_its_opposite_leave_nothing() -> None:
    left, right = torch.randn(9, 2), torch.randn(2, 7)
    low = decompose_product([left, -left], [right, right], Wanted(4, 0.0))
    assert (low.rank, low.norm) == (0, 0.0)


def test_shape_alone_chooses_the_way() -> None:
    assert way_of(256, 256, 16) == "svd"
    assert way_of(1024, 50_000, 80) == "gram"
    assert way_of(4096, 4096, 80) == "projection"
    assert way_of(4096, 4096, 1400) == "gram"
    assert wider(80, 256, 4096, 4096) == 160
    assert wider(272, 256, 4096, 4096) == 4096


def test_memory_stays_far_below_a_large_matrix() -> None:
    whole = 8192 * 28672 * 4
    assert bytes_of(28672, 8192, Wanted(64), 4) < whole / 4
    assert product_bytes(28672, 8192, 96, 64) < whole / 4
