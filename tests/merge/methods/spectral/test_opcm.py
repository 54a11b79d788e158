import numpy as np
import pytest
import torch
from torch import Tensor

from merge.kernels.thin import thin
from merge.methods.spectral.opcm import taken_count
from tests.merge.methods.spectral.plain import LARGE, SHAPES, Array, arrays, close, deltas_of, merged, rotated
from tests.merge.whole import merge_all

FIRST = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
SECOND = torch.tensor([[1.0, 3.0], [0.0, 1.0]]).double()


def projected(so_far: Array, delta: Array, alpha: float) -> Array:
    """With full square U and V, as the published code has it; of the block's size the least that suffices."""
    left, values, right = np.linalg.svd(so_far, full_matrices=True)
    values = values * (values > 1e-6 * values[0])
    inner = left.T @ delta @ right.T
    rank = int((values > 0).sum())
    for place in range(rank):
        inner[place, place] = 0
    above = np.nonzero(np.cumsum(values) / values.sum() > alpha)[0]
    count = above[0] + 1 if above.size else rank
    inner[:count, :count] = 0
    return left @ inner @ right


def reference(deltas: list[dict[str, Array]], alpha: float) -> dict[str, Array]:
    """The published recursion, with a division by lambda at every step; names of vectors begin with v."""

    def norm(vectors: dict[str, Array]) -> float:
        return float(np.sqrt(sum(np.sum(vector**2) for vector in vectors.values())))

    merged, factor, norms = deltas[0], 1.0, [norm(deltas[0])]
    for delta in deltas[1:]:
        joined = {
            name: factor * merged[name]
            + (one if name.startswith("v") or not merged[name].any() else projected(merged[name], one, alpha))
            for name, one in delta.items()
        }
        norms.append(norm(delta))
        factor = norm(joined) / np.mean(norms)
        merged = {name: vector / factor for name, vector in joined.items()}
    return merged


def test_worked_example_of_the_card() -> None:
    found = merged("opcm", [FIRST, SECOND])
    assert close(found, torch.tensor([[1.48402, 2.22603], [0.0, 0.74201]]), 1e-5)
    assert float(torch.linalg.matrix_norm(found)) == pytest.approx(2.77635, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_agrees_with_the_recursion_on_full_matrices(shape: tuple[int, int], count: int, alpha: float) -> None:
    if max(shape) > 100 and (count, alpha) != (3, 0.5):
        return
    deltas = deltas_of(count, shape)
    wanted = reference([{"w": delta} for delta in arrays(deltas)], alpha)["w"]
    assert close(merged("opcm", deltas, alpha=alpha), wanted, 1e-7)


def test_the_length_is_of_the_whole_model_unless_told_otherwise() -> None:
    models = [
        {"w": w.numpy(), "u": 5 * u.numpy(), "v": v.numpy()}
        for w, u, v in zip(
            deltas_of(3, (6, 9)), deltas_of(3, (9, 5), seed=1), deltas_of(3, (7,), seed=2), strict=True
        )
    ]
    tensors = {
        name: (torch.zeros(models[0][name].shape).double(), [torch.from_numpy(m[name]) for m in models])
        for name in models[0]
    }
    found = merge_all([("opcm", {})], tensors)
    wanted = reference(models, 0.5)
    assert all(close(found[name], wanted[name]) for name in wanted)
    alone = merge_all([("opcm", {"scope": "tensor"})], tensors)
    for name in wanted:
        own = reference([{name: model[name]} for model in models], 0.5)
        assert close(alone[name], own[name])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_joins_is_orthogonal_to_what_is_there(shape: tuple[int, int]) -> None:
    first, second = deltas_of(2, shape)
    found = merged("opcm", [first, second], scope="tensor")
    added = found * (first**2).sum() / (found * first).sum() - first
    assert abs(float((added * first).sum())) < 1e-9
    assert float((added**2).sum()) > 0.1, "something is added"


def test_one_source_is_given_back() -> None:
    for shape in SHAPES:
        (delta,) = deltas_of(1, shape)
        assert close(merged("opcm", [delta]), delta, 1e-12)


def test_copies_add_nothing() -> None:
    (delta,) = deltas_of(1, (5, 9))
    assert close(merged("opcm", [delta] * 3, alpha=1.0), delta, 1e-9)
    assert close(merged("opcm", [delta] * 3, alpha=0.0), delta, 1e-9), "on the diagonal there is nothing else"


def test_sources_in_spaces_of_their_own_are_added_up_to_the_mean_length() -> None:
    deltas = rotated(3, 12)
    norms = [float(torch.linalg.matrix_norm(delta)) for delta in deltas]
    together = sum(deltas[1:], deltas[0])
    wanted = together * (sum(norms) / 3 / float(torch.linalg.matrix_norm(together)))
    assert close(merged("opcm", deltas), wanted, 1e-9)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_zero_task_vector_only_counts_in_the_mean_length(place: int) -> None:
    deltas = deltas_of(2, (12, 31), rank=2)
    without = merged("opcm", deltas)
    deltas.insert(place, torch.zeros(12, 31).double())
    assert close(merged("opcm", deltas), without * 2 / 3, 1e-9)
    assert not bool(merged("opcm", [torch.zeros(3, 4).double()] * 2).any())


def with_spectrum(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values).double())


def test_the_block_is_the_least_that_makes_up_the_share() -> None:
    taken = thin(with_spectrum(5.0, 3.0, 2.0))
    assert [taken_count(taken, alpha, "least") for alpha in (0.0, 0.49, 0.5, 0.81, 1.0)] == [1, 1, 2, 3, 3]


def test_the_published_block_is_one_fewer_and_none_at_one() -> None:
    taken = thin(with_spectrum(5.0, 3.0, 2.0))
    assert [taken_count(taken, alpha, "published") for alpha in (0.0, 0.49, 0.5, 0.81, 1.0)] == [
        0,
        0,
        1,
        2,
        0,
    ]
    first, second = deltas_of(2, (6, 6))
    zero, one = (merged("opcm", [first, second], alpha=a, block="published") for a in (0.0, 1.0))
    assert close(zero, one, 1e-12)
    assert not close(one, merged("opcm", [first, second], alpha=1.0), 1e-3)


def test_order_matters_and_weights_multiply() -> None:
    first, second = deltas_of(2, (6, 9))
    assert not close(merged("opcm", [first, second]), merged("opcm", [second, first]), 1e-3)
    found = merged("opcm", [first, second], weights=[2.0, 1.0], scale=0.5)
    assert close(found, 0.5 * merged("opcm", [first * 2, second]), 1e-12)
