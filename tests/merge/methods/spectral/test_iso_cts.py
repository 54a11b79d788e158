import numpy as np
import pytest
import torch

from merge.methods.spectral.iso_cts import split
from tests.merge.methods.spectral.plain import (
    LARGE,
    SHAPES,
    Array,
    arrays,
    close,
    deltas_of,
    merged,
    parts,
    polar,
)


def reference(deltas: list[Array], common: float = 0.8) -> Array:
    """The paper's steps, with full decompositions."""
    side, count = min(deltas[0].shape), len(deltas)
    each = round((side - int(common * side)) / count)
    each = each if each * count <= side else side // count
    shared = side - each * count
    found = [tuple(part[..., :shared] for part in parts(np.sum(deltas, axis=0)))]
    basis = found[0][0]
    for delta in deltas:
        rest = delta - basis @ (basis.T @ delta)
        if np.abs(rest).max() > 1e-6 * np.abs(delta).max():
            found.append(tuple(part[..., :each] for part in parts(rest)))
    left, values, right = (np.concatenate([part[place] for part in found], axis=-1) for place in range(3))
    return values.mean() * polar(left) @ polar(right).T


@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
@pytest.mark.parametrize(("count", "common"), [(2, 0.8), (3, 0.5), (8, 0.4)])
def test_agrees_with_an_independent_float64_reference(
    shape: tuple[int, int], count: int, common: float
) -> None:
    deltas = deltas_of(count, shape)
    found = merged("iso_cts", deltas, common=common, scale=0.7)
    assert close(found, 0.7 * reference(arrays(deltas), common))


def test_worked_by_hand() -> None:
    """Of two directions one is common, e1; of what is left each source has one: e2 e2' and e2 e3'."""
    first = torch.tensor([[4.0, 0, 0], [0, 2, 0]]).double()
    second = torch.tensor([[4.0, 0, 0], [0, 0, 1]]).double()
    found = merged("iso_cts", [first, second], common=0.0)
    assert split(2, 2, 0.0) == (0, 1)
    assert close(found, torch.tensor([[4.0, 0, 0], [0, 0, 0]]).double(), 1e-12)
    mixed = merged("iso_cts", [torch.diag(torch.tensor([4.0, 2.0, 0, 0]).double())] * 2, common=0.5)
    assert split(4, 2, 0.5) == (2, 1)
    assert close(mixed, torch.diag(torch.tensor([6.0, 6.0, 0, 0])), 1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_source_is_what_iso_c_makes_of_it(shape: tuple[int, int]) -> None:
    deltas = deltas_of(1, shape)
    assert close(merged("iso_cts", deltas), merged("iso_c", deltas))


def test_without_own_directions_it_is_iso_c() -> None:
    deltas = deltas_of(3, (12, 31))
    assert close(merged("iso_cts", deltas, common=1.0), merged("iso_c", deltas))


@pytest.mark.parametrize("side", range(12))
@pytest.mark.parametrize("sources", [1, 2, 3, 8])
@pytest.mark.parametrize("common", [0.0, 0.3, 0.8, 1.0])
def test_directions_are_shared_out_evenly_and_all_of_them(side: int, sources: int, common: float) -> None:
    shared, each = split(side, sources, common)
    assert shared + each * sources == side
    assert min(shared, each) >= 0


def test_copies_low_rank_and_zero_task_vectors() -> None:
    deltas = deltas_of(2, (12, 31), rank=2)
    zero = torch.zeros(12, 31).double()
    assert close(merged("iso_cts", [*deltas, zero]), reference(arrays([*deltas, zero])))
    copies = merged("iso_cts", [deltas[0]] * 3)
    assert close(copies, merged("iso_c", [deltas[0]] * 3))
