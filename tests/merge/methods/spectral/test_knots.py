import numpy as np
import pytest
import torch

from tests.merge.methods.spectral.plain import LARGE, SHAPES, Array, arrays, close, deltas_of, merged, parts


def reference(deltas: list[Array], density: float, normalize: bool = True) -> Array:
    """Concatenation, SVD, and TIES with a full sort on the blocks of V."""
    columns = deltas[0].shape[1]
    left, values, right = parts(np.concatenate(deltas, axis=1))
    blocks = [(values[:, None] * right.T)[:, at : at + columns] for at in range(0, right.shape[0], columns)]
    keep = max(1, int(np.floor(round(density * blocks[0].size, 9))))
    trimmed = [b * (np.abs(b) >= np.sort(np.abs(b).ravel())[::-1][keep - 1]) for b in blocks]
    elected = np.sign(np.sum(trimmed, axis=0))
    agreeing = [block * (block * elected > 0) for block in trimmed]
    voters = np.sum([block != 0 for block in agreeing], axis=0)
    return left @ (np.sum(agreeing, axis=0) / (np.maximum(voters, 1) if normalize else 1))


@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
@pytest.mark.parametrize(("count", "density"), [(1, 0.2), (2, 0.5), (3, 0.2), (8, 1.0)])
def test_agrees_with_an_independent_float64_reference(
    shape: tuple[int, int], count: int, density: float
) -> None:
    deltas = deltas_of(count, shape)
    found = merged("knots", deltas, density=density, scale=0.6)
    assert close(found, 0.6 * reference(arrays(deltas), density))


def test_the_other_basis_and_the_sum() -> None:
    deltas = deltas_of(3, (9, 5))
    turned = [delta.T for delta in arrays(deltas)]
    assert close(merged("knots", deltas, basis="inputs"), reference(turned, 0.2).T)
    assert close(merged("knots", deltas, normalize=False), reference(arrays(deltas), 0.2, normalize=False))


def test_worked_by_hand() -> None:
    """Both change one output; along it TIES sees (4, 1) and (4, -3), and the larger sum wins."""
    deltas = [
        torch.tensor([[4.0, 1.0], [0.0, 0.0]]).double(),
        torch.tensor([[4.0, -3.0], [0.0, 0.0]]).double(),
    ]
    assert close(merged("knots", deltas, density=1.0), torch.tensor([[4.0, -3.0], [0.0, 0.0]]), 1e-12)
    assert close(merged("knots", deltas, density=0.5), torch.tensor([[4.0, 0.0], [0.0, 0.0]]), 1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_source_and_copies_are_given_back_where_nothing_is_trimmed(shape: tuple[int, int]) -> None:
    (delta,) = deltas_of(1, shape)
    assert close(merged("knots", [delta], density=1.0), delta)
    assert close(merged("knots", [delta] * 3, density=1.0), delta)


def test_low_rank_and_zero_task_vectors() -> None:
    deltas = [*deltas_of(2, (12, 31), rank=2), torch.zeros(12, 31).double()]
    assert close(merged("knots", deltas), reference(arrays(deltas), 0.2))


def test_weights_multiply_the_task_vectors() -> None:
    deltas = deltas_of(2, (5, 9))
    wanted = reference(arrays([deltas[0] * 2, deltas[1] * 0.5]), 0.3)
    assert close(merged("knots", deltas, density=0.3, weights=[2.0, 0.5]), wanted)
