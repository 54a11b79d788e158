import numpy as np
import pytest
import torch
from torch import Tensor

from merge.contract.factors import Factors
from tests.merge.methods.adapters.made import change, close, drawn, factors, nothing, product


def of(place: int, count: int) -> dict[str, tuple[bool, ...]]:
    return {"restore": tuple(at == place for at in range(count))}


def canonical(part: Factors) -> tuple[np.ndarray, np.ndarray]:
    left, values, right = np.linalg.svd(np.asarray(product(part)), full_matrices=False)
    left, values, right = left[:, : part.rank], values[: part.rank], right[: part.rank]
    signs = np.sign(right[np.arange(part.rank), np.abs(right).argmax(axis=1)])
    roots = np.sqrt(values) * signs
    return left * roots, roots[:, None] * right


def reference(parts: list[Factors], components: int, place: int) -> Tensor:
    """One adapter from mean and components, position by position, from the equations."""
    sides = [canonical(part) for part in parts]
    rebuilt = []
    for rows in ([left for left, _ in sides], [right.T for _, right in sides]):
        found = np.zeros_like(rows[0])
        for position in range(rows[0].shape[0]):
            x = np.stack([each[position] for each in rows], axis=1)
            mean = x.mean(axis=1, keepdims=True)
            basis = np.linalg.svd(x - mean)[0][:, :components]
            found[position] = (basis @ (basis.T @ (x - mean)) + mean)[:, place]
        rebuilt.append(found)
    return torch.from_numpy(rebuilt[0] @ rebuilt[1].T)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_every_source_is_given_back_whole_with_enough_components(count: int) -> None:
    parts = drawn(count, (9, 7), 3)
    for place in range(count):
        found = change("rmm", parts, components=count - 1, **of(place, count))
        assert close(found, product(parts[place]))


@pytest.mark.parametrize("components", [0, 1, 2])
def test_agrees_with_the_equations(components: int) -> None:
    parts = drawn(4, (9, 7), 3)
    found = change("rmm", parts, components=components, **of(2, 4))
    assert close(found, reference(parts, components, 2))


def test_more_components_come_closer() -> None:
    parts = drawn(6, (12, 10), 4)
    wanted = product(parts[1])
    lost = [float((change("rmm", parts, components=p, **of(1, 6)) - wanted).norm()) for p in range(6)]
    assert lost == sorted(lost, reverse=True) or lost[-1] < 1e-9 < lost[0]
    assert lost[-1] < 1e-9


def test_the_merged_adapter_is_the_product_of_the_mean_factors() -> None:
    parts = drawn(3, (6, 5), 2)
    sides = [canonical(part) for part in parts]
    left, right = (np.mean([side[at] for side in sides], axis=0) for at in (0, 1))
    assert close(change("rmm", parts), torch.from_numpy(left @ right))
    assert close(change("rmm", parts[::-1]), change("rmm", parts)), "in any order"


def test_several_restored_are_averaged_as_products() -> None:
    parts = drawn(3, (6, 5), 2)
    found = change("rmm", parts, components=2, restore=(True, False, True))
    assert close(found, (product(parts[0]) + product(parts[2])) / 2)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_copies_are_themselves_with_no_component(count: int) -> None:
    (part,) = drawn(1, (8, 6), 3)
    assert close(change("rmm", [part] * count), product(part))
    assert close(change("rmm", [part] * count, components=0, **of(0, count)), product(part))


def test_balance_makes_the_way_of_writing_irrelevant() -> None:
    parts = drawn(2, (6, 5), 2)
    turn = torch.tensor([[2.0, 1.0], [0.5, -1.0]]).double()
    turned = [Factors(parts[0].left @ turn, torch.linalg.inv(turn) @ parts[0].right), parts[1]]
    assert close(change("rmm", turned), change("rmm", parts), 1e-8)
    assert not close(change("rmm", turned, balance=False), change("rmm", parts, balance=False))


def test_ranks_may_differ_and_adapters_be_absent() -> None:
    (two,), (four,) = drawn(1, (9, 8), 2, seed=1), drawn(1, (9, 8), 4, seed=2)
    for place, part in enumerate((two, four)):
        for balance in (True, False):
            found = change("rmm", [two, four], components=1, balance=balance, **of(place, 2))
            assert close(found, product(part))
    assert close(change("rmm", [nothing(two), two], components=1, **of(1, 2)), product(two))
    assert float(change("rmm", [nothing(two), two], components=1, **of(0, 2)).norm()) < 1e-9
    assert factors("rmm", [nothing(two)]).rank == 0
