import pytest
import torch

from merge.kernels.reversible import balanced, shared
from tests.merge.methods.adapters.made import close, drawn, product


def vectors(count: int, positions: int, length: int) -> torch.Tensor:
    return torch.randn(count, positions, length, generator=torch.Generator().manual_seed(1)).double()


def test_worked_example_of_the_card() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]).double()[:, None]
    found = shared(x, 1)
    assert close(found.mean, torch.tensor([[3.0, 2.0]]).double())
    assert close(found.basis[0, :, 0], torch.tensor([1.0, 0.0]).double())
    assert close(found.coefficients[0, 0], torch.tensor([-2.0, 0.0, 2.0]).double())
    assert all(close(found.restored(place), x[place]) for place in range(3))


@pytest.mark.parametrize(("count", "length"), [(3, 5), (8, 4), (2, 1), (1, 4)])
def test_enough_components_lose_nothing(count: int, length: int) -> None:
    x = vectors(count, 7, length)
    found = shared(x, min(length, count - 1))
    assert all(close(found.restored(place), x[place]) for place in range(count))


@pytest.mark.parametrize("components", [0, 1, 2, 3])
def test_the_error_is_the_tail_of_the_singular_values(components: int) -> None:
    x = vectors(6, 5, 4)
    found = shared(x, components)
    lost = torch.stack([found.restored(place) - x[place] for place in range(6)]).square().sum(dim=(0, 2))
    for position in range(5):
        tail = torch.linalg.svdvals((x[:, position] - x[:, position].mean(dim=0)).T)[components:]
        assert float(lost[position]) == pytest.approx(float((tail**2).sum()), abs=1e-12)


def test_copies_need_no_component_and_the_order_only_moves_coefficients() -> None:
    x = vectors(1, 4, 3).expand(5, 4, 3)
    assert close(shared(x, 0).restored(3), x[3])
    y = vectors(4, 4, 3)
    forth, back = shared(y, 2), shared(y.flip(0), 2)
    assert close(forth.basis, back.basis)
    assert close(forth.coefficients.flip(2), back.coefficients)


def test_balanced_factors_depend_on_the_product_alone() -> None:
    (part,) = drawn(1, (6, 5), 3)
    turn = torch.tensor([[2.0, 1, 0], [0, 1, 3], [1, 0, 1]]).double()
    left, right = balanced(part.left, part.right, 4)
    other = balanced(part.left @ turn, torch.linalg.inv(turn) @ part.right, 4)
    assert close(left, other[0], 1e-8) and close(right, other[1], 1e-8)
    assert close(left @ right, product(part))
    assert not bool(left[:, 3].any()) and not bool(right[3].any())
