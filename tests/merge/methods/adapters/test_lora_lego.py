import numpy as np
import pytest
import torch
from torch import Tensor

from merge.contract.factors import Factors
from tests.merge.methods.adapters.made import change, close, drawn, factors, nothing, product, unit

CORNERS = [unit([2], [1, 0]), unit([2], [0, 1])]
"""Two pieces with a = (1, 0) and (0, 1), b = 2: their sum changes both entries by 2."""


def of(*entries: float) -> Tensor:
    return torch.tensor([list(entries)], dtype=torch.float64)


def test_worked_example_of_the_card() -> None:
    assert close(change("lora_lego", CORNERS, rank=2), of(2**0.5, 2**0.5))
    assert close(change("lora_lego", CORNERS, rank=2, output_reweight=False), of(2, 2)), "the sum"
    published = change("lora_lego", CORNERS, rank=1, features="normalized", reweight="maxnorm")
    assert close(published, of(1, 1))
    assert close(change("lora_lego", CORNERS, rank=1, reweight="off"), of(1, 1)), "the mean, itself of rank 1"
    assert close(change("lora_lego", CORNERS, rank=1), of(2**0.5, 2**0.5)), "as long as its members"


def test_as_many_pieces_as_there_are_give_the_sum() -> None:
    parts = drawn(3, (7, 11), 4)
    whole = sum((product(each) for each in parts[1:]), product(parts[0]))
    for rank in (12, 500):
        assert close(change("lora_lego", parts, rank=rank, output_reweight=False), whole)
    assert close(change("lora_lego", parts, rank=12), whole * (4 / 12) ** 0.5)


def rewritten(part: Factors, order: list[int], gauge: list[float]) -> Factors:
    """The same change with its pieces in another order, each as (c a, b / c)."""
    c = torch.tensor(gauge).double()
    return Factors((part.left / c)[:, order], (part.right * c[:, None])[order])


def test_neither_the_order_of_pieces_nor_their_gauge_matters() -> None:
    parts = drawn(3, (9, 6), 4)
    others = [rewritten(each, [2, 0, 3, 1], [-1.0, 3.0, 0.25, -7.0]) for each in parts]
    for rank in (2, 4, 7):
        assert close(change("lora_lego", others, rank=rank), change("lora_lego", parts, rank=rank))
    assert close(change("lora_lego", others[::-1]), change("lora_lego", parts)), "nor that of the sources"


def test_a_flipped_piece_cancels_in_the_published_version_alone() -> None:
    (part,) = drawn(1, (5, 4), 1)
    flipped = rewritten(part, [0], [-1.0])
    assert close(change("lora_lego", [part, flipped], rank=1), product(part))
    published = change("lora_lego", [part, flipped], rank=1, features="normalized", reweight="off")
    assert float(published.norm()) < 1e-9


def test_units_of_the_change_do_not_depend_on_how_it_is_factored() -> None:
    parts = drawn(2, (9, 6), 3)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)).double()).Q
    turned = [Factors(each.left @ turn, turn.T @ each.right) for each in parts]
    assert close(change("lora_lego", turned, units="singular"), change("lora_lego", parts, units="singular"))
    assert not close(change("lora_lego", turned), change("lora_lego", parts))


@pytest.mark.parametrize("count", [1, 2, 8])
def test_copies_give_the_adapter_itself(count: int) -> None:
    (part,) = drawn(1, (10, 8), 4)
    assert close(change("lora_lego", [part] * count), product(part))


def reference(parts: list[Factors], count: int) -> Tensor:
    """Best grouping of all, by trying each: the least sum of squared distances of directions (matrices)."""
    pieces = [np.outer(each.left[:, k], each.right[k]) for each in parts for k in range(each.rank)]
    unit = [piece / np.linalg.norm(piece) for piece in pieces]
    best, chosen = np.inf, tuple(range(0))
    for code in range(count ** len(pieces)):
        belongs = [code // count**k % count for k in range(len(pieces))]
        if len(set(belongs)) < count:
            continue
        loss = 0.0
        for group in range(count):
            own = [unit[k] for k, at in enumerate(belongs) if at == group]
            loss += sum(float(np.sum((each - sum(own) / len(own)) ** 2)) for each in own)
        if loss < best - 1e-12:
            best, chosen = loss, tuple(belongs)
    total = np.zeros_like(pieces[0])
    for group in range(count):
        own = [pieces[k] for k, at in enumerate(chosen) if at == group]
        left, _, right = np.linalg.svd(sum(own) / len(own))
        length = sum(float(np.linalg.norm(each)) for each in own) / len(own)
        total += length * np.outer(left[:, 0], right[0])
    return torch.from_numpy(total * (parts[0].rank / count) ** 0.5)


@pytest.mark.parametrize("count", [2, 3])
def test_agrees_with_the_best_grouping_where_groups_are_plain(count: int) -> None:
    centres = drawn(1, (6, 5), count, seed=4)[0]
    noise = drawn(2, (6, 5), count, seed=5)
    parts = [Factors(centres.left + 0.1 * n.left, centres.right + 0.1 * n.right) for n in noise]
    assert close(change("lora_lego", parts, rank=count), reference(parts, count))


def test_fewer_directions_than_pieces_wanted_give_fewer_pieces() -> None:
    parts = [unit([1, 0], [1, 0, 0])] * 3 + [unit([0, 1], [0, 1, 0])] * 3
    found = factors("lora_lego", parts, rank=4)
    assert found.rank == 2
    assert close(product(found), (product(parts[0]) + product(parts[3])) * 0.5**0.5)


def test_zeros_and_absent_adapters_add_nothing() -> None:
    parts = drawn(2, (6, 5), 3)
    wanted = change("lora_lego", parts)
    empty, zero = nothing(parts[0]), Factors(parts[0].left * 0, parts[0].right)
    assert close(change("lora_lego", [empty, *parts]), wanted)
    assert close(change("lora_lego", [*parts, zero]), wanted)
    assert factors("lora_lego", [empty, empty]).rank == 0
    assert factors("lora_lego", [zero]).rank == 0


def test_one_adapter_is_pruned_to_fewer_pieces() -> None:
    (part,) = drawn(1, (8, 6), 6)
    assert factors("lora_lego", [part], rank=2).rank == 2


def test_weights_and_scale_multiply() -> None:
    (part,) = drawn(1, (4, 3), 2)
    assert close(change("lora_lego", [part], [3.0], scale=0.5), 1.5 * product(part))
    assert close(change("lora_lego", [part], [-1.0]), -product(part))
