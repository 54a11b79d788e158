import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from merge.kernels.divergence import divergence, divergence_terms
from merge.kernels.reduce import piece_sums
from tests.merge.whole import merge_one


def fuse(base: torch.Tensor, source: torch.Tensor, **settings: object) -> torch.Tensor:
    return merge_one([("arcee_fusion", settings)], base, [source])


def row_divergence(ours: torch.Tensor, theirs: torch.Tensor, most: float, apart: float) -> torch.Tensor:
    """Of each row; as far as its numbers are said to go."""
    return divergence(
        [piece_sums(term, ours.shape[1]) for term in divergence_terms(ours, theirs, most, apart)]
    )


BY_SUMS, BY_DEFINITION = (1.0, 1.0), (1.0, 9.0)
"""How far numbers and changes may go: as far as the three sums are taken, and beyond."""


@pytest.mark.parametrize("far", [BY_SUMS, BY_DEFINITION])
def test_divergence_by_hand(far: tuple[float, float]) -> None:
    """(3/4, 1/4) against (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2)."""
    half = math.log(3.0) / 2
    ours, theirs = torch.tensor([[half, -half]]), torch.zeros(1, 2)
    wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(row_divergence(ours, theirs, *far)) == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("far", [BY_SUMS, BY_DEFINITION])
def test_divergence_of_almost_equal_rows_is_not_drowned_in_rounding(far: tuple[float, float]) -> None:
    """To second order it is half the variance of the change: here a change of 1e-6 in one of 1000 entries."""
    theirs = torch.zeros(1, 1000, dtype=torch.float64)
    ours = theirs.clone()
    ours[0, 0] = 1e-6
    assert float(row_divergence(ours, theirs, *far)) == pytest.approx(0.5e-12 * 0.001 * 0.999, rel=1e-2)
    assert float(row_divergence(theirs, theirs, *far)) == 0.0


@pytest.mark.parametrize(
    ("size", "change"), [(0.02, 1e-3), (1.0, 0.05), (2.5, 0.15), (60.0, 0.1), (1.0, 5.0)]
)
def test_divergence_agrees_with_the_definition_at_any_size(size: float, change: float) -> None:
    generator = torch.Generator().manual_seed(6)
    theirs = torch.randn(5, 700, generator=generator) * size
    ours = theirs + torch.randn(5, 700, generator=generator) * change
    far = float(torch.maximum(ours.abs(), theirs.abs()).max()), float((ours - theirs).abs().max())
    p, q = (rows.double().log_softmax(dim=1) for rows in (ours, theirs))
    wanted = (p.exp() * (p - q)).sum(dim=1)
    assert torch.allclose(row_divergence(ours, theirs, *far), wanted, rtol=1e-8, atol=1e-15)


def test_worked_example() -> None:
    """Twelve entries in one row; importance is proportional to the change. Q1 is the third smallest, the
    median the sixth, Q3 the ninth: 1, 1, 1 (times the row's divergence), so what exceeds 1 by far is taken.
    """
    base = torch.zeros(1, 12)
    change = torch.tensor([[0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1.5, 2, 4]])
    assert fuse(base, change).tolist() == [[0, 0, *[1.0] * 7, 1.5, 2, 4]]
    spread = torch.tensor([[0.0, 0, 1, 1, 1, 2, 2, 2, 3, 3.5, 5.5, 9]])
    assert fuse(base, spread).tolist() == [[0.0] * 10 + [5.5, 9.0]], "above 2 + 1.5 (3 - 1)"
    assert fuse(base, spread, reach=0.7).tolist() == [[0.0] * 9 + [3.5, 5.5, 9.0]]


def test_rows_that_moved_little_are_less_important() -> None:
    base = torch.zeros(40, 8)
    source = torch.zeros(40, 8)
    source[:39, 0] = 0.01
    source[39, 0] = 3.0
    merged = fuse(base, source)
    assert float(merged[39, 0]) == 3.0
    assert float(fuse(base, source + 0.001 * torch.arange(8)).abs()[:39].max()) < 0.02


def test_where_little_matters_every_change_is_taken() -> None:
    base, source = torch.zeros(10, 10), torch.zeros(10, 10)
    source[0] = torch.arange(10.0)
    assert torch.equal(fuse(base, source), source)


def test_nothing_changed_gives_the_base() -> None:
    base = torch.randn(6, 5)
    assert torch.equal(fuse(base, base.clone()), base)


def test_the_weight_multiplies_what_is_taken() -> None:
    base, source = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
    assert merge_one([("arcee_fusion", {})], base, [source], weights=[0.5]).tolist() == [[0.0, 0.5]]


def test_huge_and_tiny_values_stay_finite() -> None:
    generator = torch.Generator().manual_seed(5)
    for size in (1e37, 1e-45):
        base, source = torch.randn(2, 5, 6, generator=generator) * size
        assert bool(torch.isfinite(fuse(base, source)).all())


def reference(base: NDArray[np.float64], source: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """Straight from the definition, quartiles by a full sort."""
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (source, base))
    importance = np.abs(source - base) * (p * np.log(p / q)).sum(axis=1, keepdims=True)
    ordered = np.sort(importance.reshape(-1))
    lower, median, upper = (ordered[int(share * (ordered.size - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= median + reach * (upper - lower), source, base)


@pytest.mark.parametrize("reach", [0.0, 1.5, 3.0])
@pytest.mark.parametrize("shape", [(64, 33), (1, 7), (200, 2)])
def test_agrees_with_an_independent_float64_reference(shape: tuple[int, int], reach: float) -> None:
    generator = torch.Generator().manual_seed(8)
    base = torch.randn(shape, generator=generator)
    source = base + 0.1 * torch.randn(shape, generator=generator)
    merged = fuse(base, source, reach=reach)
    wanted = reference(base.double().numpy(), source.double().numpy(), reach)
    assert np.abs(merged.numpy() - wanted).max() < 1e-6


def test_quartiles_are_exact_where_mergekit_samples() -> None:
    generator = torch.Generator().manual_seed(8)
    base = torch.randn(1100, 1000, generator=generator)
    source = base + 0.1 * torch.randn(1100, 1000, generator=generator)
    merged = fuse(base, source)
    wanted = reference(base.double().numpy(), source.double().numpy(), 1.5)
    assert float(((merged.numpy() != base.numpy()) != (wanted != base.numpy())).mean()) < 3e-6


def test_rows_of_a_stack_of_experts_are_those_of_its_matrices() -> None:
    generator = torch.Generator().manual_seed(8)
    base = torch.randn(3, 20, 30, generator=generator)
    source = base + torch.randn(base.shape, generator=generator) / 9
    flat = fuse(base.view(60, 30), source.view(60, 30))
    assert torch.equal(merge_one([("arcee_fusion", {})], base, [source], role="expert").view(60, 30), flat)
