import numpy as np
import pytest
import torch

from tests.merge.methods.adapters.made import change, close, drawn, factors, nothing, product, unit


@pytest.mark.parametrize("count", [1, 2, 8])
def test_is_the_sum_of_products_without_cross_terms(count: int) -> None:
    parts = drawn(count, (12, 9), 3)
    weights = [1.0, -1.0, 0.5, 2.0, 1.0, 1.0, 0.25, -3.0][:count]
    wanted = sum(
        w * np.asarray(each.left) @ np.asarray(each.right) for w, each in zip(weights, parts, strict=True)
    )
    assert close(change("cat_svd", parts, weights), torch.from_numpy(wanted))
    halved = change("cat_svd", parts, weights, scale=0.5)
    assert close(halved, 0.5 * torch.from_numpy(wanted))


def test_worked_example() -> None:
    """diag(3, 1) + diag(0, 2): 3 and 3; cut to one direction, the other is lost."""
    parts = [unit([1, 0], [3, 0]), unit([0, 1], [0, 1]), unit([0, 1], [0, 2])]
    assert close(change("cat_svd", parts), torch.diag(torch.tensor([3.0, 3.0]).double()))
    cut = factors("cat_svd", [unit([1, 0], [3, 0]), unit([0, 1], [0, 1])], rank=1)
    assert close(product(cut), torch.diag(torch.tensor([3.0, 0.0]).double()))
    assert cut.lost == pytest.approx(1.0)


def test_normalize_divides_by_the_weights() -> None:
    parts = drawn(3, (5, 4), 2)
    whole = change("cat_svd", parts, [1.0, 2.0, 1.0])
    assert close(change("cat_svd", parts, [1.0, 2.0, 1.0], normalize=True), whole / 4)
    assert close(change("cat_svd", [parts[0]] * 8, normalize=True), product(parts[0])), "copies"


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_is_cut_to_the_best_of_a_rank_and_tells_the_loss(rank: int) -> None:
    parts = drawn(3, (12, 9), 2)
    whole = change("cat_svd", parts)
    values = torch.linalg.svdvals(whole)
    cut = factors("cat_svd", parts, rank=rank)
    assert cut.rank == rank
    assert float((whole - product(cut)).norm()) == pytest.approx(float(values[rank:].norm()))
    assert cut.lost == pytest.approx(float(values[rank:].norm()))


def test_error_keeps_the_fewest_directions_that_suffice() -> None:
    parts = drawn(2, (12, 9), 3)
    whole = change("cat_svd", parts)
    values = torch.linalg.svdvals(whole)
    for count in (1, 3, 5):
        limit = float(values[count:].norm() / values.norm())
        assert factors("cat_svd", parts, error=limit * 1.0001).rank == count


def test_copies_and_deficient_ranks_are_found_in_fewer_directions() -> None:
    (part,) = drawn(1, (8, 8), 2)
    assert factors("cat_svd", [part] * 8, rank=100).rank == 2
    assert close(change("cat_svd", [part] * 8, rank=100), 8 * product(part))
    assert factors("cat_svd", [part, part], [1.0, -1.0], rank=100).rank == 0, "they cancel"


def test_adapters_that_leave_the_module_alone_add_nothing() -> None:
    (part,) = drawn(1, (6, 4), 2)
    assert close(change("cat_svd", [nothing(part), part, nothing(part)]), product(part))
    assert factors("cat_svd", [nothing(part)]).rank == 0


def test_density_keeps_the_largest_entries_of_a_and_weights_can_subtract() -> None:
    one, other = unit([1, 2], [3, -1]), unit([1, 0], [0.5, 4])
    kept = change("cat_svd", [one, other], density=(0.5, 1.0))
    assert close(kept, torch.tensor([[3.5, 4.0], [6.0, 0.0]]).double())
    assert close(change("cat_svd", [one, other], [1.0, 0.0]), product(one))
    assert close(change("cat_svd", [one, one], [1.0, -1.0], density=(0.5, 0.5)), torch.zeros(2, 2).double())
    assert close(change("cat_svd", [one, other], density=(0.0, 0.0)), torch.zeros(2, 2).double())
    assert close(change("cat_svd", [one], density=(0.01,)), torch.tensor([[3.0, 0.0], [6.0, 0.0]]).double())
    same = [unit([1], [1]), unit([-1], [-1])]
    assert float(change("cat_svd", same, [0.5, 0.5])) == 1.0, "added up apart they would cancel"
