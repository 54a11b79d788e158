"""Thin decompositions agree with numpy's, whichever way they are made."""

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.kernels import thin as thin_module
from merge.kernels.thin import beside_orthonormal, column_basis, divided, isometry, orthonormal, thin

SHAPES = [(1, 1), (1, 9), (9, 1), (6, 6), (40, 25), (25, 40), (300, 260), (260, 300), (700, 640)]


def matrix(rows: int, columns: int, rank: int | None = None, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(rows, columns, generator=generator).double()
    left, right = (
        torch.randn(size, generator=generator).double() for size in ((rows, rank), (rank, columns))
    )
    return left @ right


def identity_like(columns: Tensor) -> float:
    return float((columns.T @ columns - torch.eye(columns.shape[1])).abs().max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_direction_of_a_matrix(shape: tuple[int, int], dtype: torch.dtype) -> None:
    given = matrix(*shape).to(dtype)
    found = thin(given)
    assert found.rank == min(shape)
    assert torch.allclose(found.product(), given.double(), atol=1e-10)
    assert np.allclose(found.values.numpy(), np.linalg.svd(given.double().numpy(), compute_uv=False))
    assert max(identity_like(found.left), identity_like(found.right)) < 1e-9


@pytest.mark.parametrize("shape", [(40, 25), (300, 260), (560, 900)], ids=str)
@pytest.mark.parametrize("most", [0, 1, 7, 40])
def test_the_leading_directions_are_the_first_of_all(shape: tuple[int, int], most: int) -> None:
    given = matrix(*shape)
    found, every = thin(given, most), thin(given)
    assert found.rank == min(most, *shape)
    assert torch.allclose(found.product(), every.first(found.rank).product(), atol=1e-8)


@pytest.mark.parametrize("shape", [(40, 25), (300, 260), (900, 1100)], ids=str)
def test_null_directions_are_left_out(shape: tuple[int, int]) -> None:
    found = thin(matrix(*shape, rank=4))
    assert found.rank == 4
    assert thin(matrix(*shape, rank=4), 100).rank == 4
    assert thin(torch.zeros(shape)).product().abs().max() == 0


def test_a_spread_that_squares_hide_is_decomposed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = (torch.linalg.qr(matrix(270, 270, seed=seed)).Q for seed in (1, 2))
    given = (left * torch.logspace(0, -5.9, 270, dtype=torch.float64)) @ right.T
    found = thin(given)
    assert found.rank == 270
    assert identity_like(found.left) < 1e-9
    monkeypatch.setattr(thin_module, "_is_orthonormal", lambda _: True)
    assert identity_like(thin(given).left) > 1e-7, "what the check is for"


def test_few_directions_are_found_by_projection_only_where_they_are_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low, flat = matrix(600, 700, rank=9), matrix(600, 700)
    monkeypatch.setattr(thin_module, "_by_gram", None)
    found = thin(low, 12)
    assert torch.allclose(found.product(), low, atol=1e-9)
    with pytest.raises(TypeError):
        thin(flat, 12)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30, 1e200])
@pytest.mark.parametrize("shape", [(9, 5), (300, 260)], ids=str)
def test_no_size_overflows_or_vanishes(size: float, shape: tuple[int, int]) -> None:
    given = matrix(*shape) * size
    assert torch.allclose(thin(given).product() / size, given / size, atol=1e-10)


@pytest.mark.parametrize("shape", [(9, 5), (300, 260), (600, 520)], ids=str)
def test_signs_are_fixed(shape: tuple[int, int]) -> None:
    given = matrix(*shape)
    for found in (thin(given), thin(-given)):
        largest = found.right.gather(0, found.right.abs().argmax(dim=0, keepdim=True))
        assert bool((largest > 0).all())


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (400, 200), (200, 400)], ids=str)
def test_the_polar_factor_is_the_nearest_with_orthonormal_columns(shape: tuple[int, int]) -> None:
    given = matrix(*shape)
    left, _, right = np.linalg.svd(given.numpy(), full_matrices=False)
    assert np.allclose(orthonormal(given).numpy(), left @ right, atol=1e-9)


@pytest.mark.parametrize("shape", [(9, 4), (400, 200)], ids=str)
def test_copies_of_columns_share_one_direction(shape: tuple[int, int]) -> None:
    once = torch.linalg.qr(matrix(*shape)).Q
    assert torch.allclose(orthonormal(torch.cat([once, once], dim=1)), torch.cat([once, once], 1) / 2**0.5)
    assert not bool(orthonormal(torch.zeros(shape)).any())


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (300, 200), (300, 90)], ids=str)
def test_a_basis_of_several_matrices_columns(shape: tuple[int, int]) -> None:
    several = [matrix(*shape, rank=3, seed=seed) for seed in (1, 2)]
    basis = column_basis(several)
    assert basis.shape[1] == min(6, shape[0])
    assert identity_like(basis) < 1e-10
    assert all(torch.allclose(basis @ (basis.T @ each), each, atol=1e-9) for each in several)
    assert column_basis([torch.zeros(shape), torch.zeros(shape)]).shape[1] == 0


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (240, 330), (330, 240), (280, 280)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_isometry_has_the_directions_and_none_of_the_sizes(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double() * 2.0**40
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found, sizes = isometry(matrix, 1e-6, dtype)
    assert found.dtype in (dtype, torch.float64)
    assert torch.allclose(found.double(), left @ right, atol=1e-4 if dtype == torch.float32 else 1e-9)
    assert torch.allclose(sizes.sort(descending=True).values, values, rtol=1e-8)


@pytest.mark.parametrize("shape", [(5, 9), (240, 330), (280, 280)], ids=str)
@pytest.mark.parametrize("rank", [3, None])
def test_a_space_is_divided_into_leading_directions_and_all_others(
    shape: tuple[int, int], rank: int | None
) -> None:
    """Directions that the matrix lacks are among the others."""
    generator = torch.Generator().manual_seed(2)
    inner = rank or shape[0]
    matrix = torch.randn(shape[0], inner, generator=generator).double()
    matrix = matrix @ torch.randn(inner, shape[1], generator=generator).double()
    found, beyond = divided(matrix, 4, 1e-6, torch.float64)
    assert found.rank == min(4, inner) and beyond.shape == (shape[0], shape[0] - found.rank)
    both = torch.cat([found.left, beyond], dim=1)
    assert torch.allclose(both.T @ both, torch.eye(shape[0]).double(), atol=1e-9)
    values = torch.linalg.svdvals(matrix)
    assert torch.allclose(found.values, values[: found.rank], rtol=1e-8)
    assert torch.allclose(found.left.T @ matrix, found.values[:, None] * found.right.T, atol=1e-7)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (330, 240), (240, 330)], ids=str)
def test_a_product_with_orthonormal_columns_does_not_need_them(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    columns = torch.randn(shape, generator=generator).double()
    left = torch.randn(7, shape[1], generator=generator).double()
    found = beside_orthonormal(left, columns, 1e-6, torch.float64)
    assert torch.allclose(found, left @ orthonormal(columns).T, atol=1e-9)


def test_small_singular_values_are_not_left_to_float32() -> None:
    generator = torch.Generator().manual_seed(4)
    left, right = (torch.linalg.qr(torch.randn(300, 270, generator=generator).double()).Q for _ in range(2))
    matrix = (left * torch.logspace(0, -5.5, 270).double()) @ right.T
    found = thin(matrix, dtype=torch.float32)
    assert found.left.dtype == torch.float64
    assert torch.allclose(found.left.T @ found.left, torch.eye(270).double(), atol=1e-7)
    assert float((isometry(matrix, 1e-6, torch.float32)[0].double() - left @ right.T).abs().max()) < 1e-5
