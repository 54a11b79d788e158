from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.merge.whole import merge_one

ZERO = torch.zeros(2)
A, B = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])


def stock(
    base: Tensor, sources: list[Tensor], weights: list[float] | None = None, along: str = "tensor"
) -> Tensor:
    return merge_one([("model_stock", {"along": along})], base, sources, weights=weights)


def family(count: int, shape: tuple[int, ...] = (13, 17)) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(count)
    base, common = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return base, [base + 0.1 * (common + torch.randn(shape, generator=generator)) for _ in range(count)]


def by_the_paper(base: np.ndarray, sources: list[np.ndarray]) -> np.ndarray:
    """Equation of the paper on one vector, in float64, equal weights."""
    deltas = [source - base for source in sources]
    count = len(deltas)
    cosine = np.mean(
        [np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in combinations(deltas, 2)]
    )
    ratio = count * cosine / (1 + (count - 1) * cosine)
    return ratio * np.mean(sources, axis=0) + (1 - ratio) * base


def test_a_cosine_of_six_tenths_goes_three_quarters_of_the_way() -> None:
    assert torch.allclose(stock(ZERO, [A, B]), torch.tensor([0.6, 0.3]))


def test_parallel_task_vectors_give_the_average() -> None:
    assert torch.allclose(stock(ZERO, [A, 3 * A]), 2 * A)


def test_task_vectors_at_right_angles_give_the_base() -> None:
    assert torch.equal(stock(A, [A + A, A + torch.tensor([0.0, 1.0])]), A)


def test_opposing_task_vectors_give_the_base_and_never_overshoot() -> None:
    for other in (-A, torch.tensor([-0.99, 0.1]), torch.tensor([-0.1, 1.0])):
        assert torch.allclose(stock(ZERO, [A, other]), ZERO)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_agrees_with_the_papers_equation_in_float64(count: int) -> None:
    base, sources = family(count)
    wanted = by_the_paper(base.double().numpy(), [source.double().numpy() for source in sources])
    assert np.abs(stock(base, sources).numpy() - wanted).max() < 1e-6


@pytest.mark.parametrize("shape", [(13, 17), (6, 4, 3, 3), (50,)])
def test_filters_each_have_their_own_ratio(shape: tuple[int, ...]) -> None:
    base, sources = family(3, shape)
    rows = shape[0] if len(shape) > 1 else 1
    cut = [tensor.double().reshape(rows, -1).numpy() for tensor in (base, *sources)]
    wanted = np.stack([by_the_paper(cut[0][row], [c[row] for c in cut[1:]]) for row in range(rows)])
    merged = stock(base, sources, along="rows")
    assert np.abs(merged.reshape(rows, -1).numpy() - wanted).max() < 1e-6


def test_weights_are_shares_of_the_average() -> None:
    assert torch.allclose(stock(ZERO, [A, 3 * A], [3.0, 1.0]), 1.5 * A)


def test_weights_spread_unevenly_count_as_fewer_sources() -> None:
    share = 1 / (0.75**2 + 0.25**2)
    ratio = share * 0.6 / (1 + (share - 1) * 0.6)
    assert torch.allclose(stock(ZERO, [A, B], [3.0, 1.0]), ratio * (0.75 * A + 0.25 * B))


@pytest.mark.parametrize("along", ["tensor", "rows"])
def test_a_source_without_weight_is_as_if_it_were_not_there(along: str) -> None:
    base, sources = family(3)
    without = stock(base, sources[:2], along=along)
    assert torch.allclose(stock(base, sources, [1.0, 1.0, 0.0], along), without, atol=1e-6)


def test_a_single_source_with_weight_comes_back() -> None:
    assert torch.allclose(stock(ZERO, [A, B], [2.0, 0.0]), A)


def test_a_task_vector_of_zeros_is_at_right_angles() -> None:
    assert torch.allclose(stock(ZERO, [A, A, ZERO]), 0.6 * (2 / 3) * A)


@pytest.mark.parametrize("along", ["tensor", "rows"])
def test_nothing_but_zeros_gives_the_base(along: str) -> None:
    assert torch.equal(stock(A, [A.clone(), A.clone()], along=along), A)


def test_rows_of_a_stack_of_experts_are_those_of_its_matrices() -> None:
    base, *sources = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(4))
    flat = stock(base.view(20, 6), [source.view(20, 6) for source in sources], along="rows")
    made = merge_one([("model_stock", {"along": "rows"})], base, sources, role="expert")
    assert torch.equal(made.view(20, 6), flat)
