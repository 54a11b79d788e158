import numpy as np
import pytest
import torch

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
    rotated,
)


def reference(deltas: list[Array], kept: int | None = None) -> Array:
    """The four steps of the paper, with full decompositions."""
    side, count = min(deltas[0].shape), len(deltas)
    kept = side // count if kept is None else kept
    if kept == 0:
        return np.mean(deltas, axis=0)
    cut = [tuple(part[..., :kept] for part in parts(delta)) for delta in deltas if delta.any()]
    if not cut:
        return np.zeros_like(deltas[0])
    left, values, right = (np.concatenate([part[place] for part in cut], axis=-1) for place in range(3))
    return (polar(left) * values) @ polar(right).T


def test_worked_examples_of_the_cards() -> None:
    diagonals = [torch.diag(torch.tensor(d).double()) for d in ([3.0, 1, 0, 0], [0.0, 0, 2, 0.5])]
    assert close(merged("tsv_m", diagonals), torch.diag(torch.tensor([3.0, 1, 2, 0.5])), 1e-12)
    first = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()
    assert close(merged("tsv_m", [first, torch.full((2, 2), 0.5).double()]), torch.eye(2), 1e-12)


@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_agrees_with_an_independent_float64_reference(shape: tuple[int, int], count: int) -> None:
    deltas = deltas_of(count, shape)
    assert close(merged("tsv_m", deltas), reference(arrays(deltas)))


@pytest.mark.parametrize("shape", [(8, 6), *LARGE], ids=str)
def test_copies_of_one_source_give_its_part_of_rank_k(shape: tuple[int, int]) -> None:
    """The published code fills the directions that the copies leave empty with arbitrary ones."""
    (delta,) = deltas_of(1, shape)
    left, values, right = parts(delta.numpy())
    kept = min(shape) // 3
    assert close(merged("tsv_m", [delta] * 3), (left[:, :kept] * values[:kept]) @ right[:, :kept].T)


def test_one_source_is_given_back() -> None:
    for shape in SHAPES:
        (delta,) = deltas_of(1, shape)
        assert close(merged("tsv_m", [delta]), delta, 1e-12)


def test_sources_in_spaces_of_their_own_are_added_up() -> None:
    deltas = rotated(3, 12)
    assert close(merged("tsv_m", deltas), sum(deltas[1:], deltas[0]), 1e-12)


@pytest.mark.parametrize("shape", [(12, 31), (300, 260)], ids=str)
def test_low_rank_and_zero_task_vectors_leave_nothing_arbitrary(shape: tuple[int, int]) -> None:
    deltas = deltas_of(2, shape, rank=2)
    found = merged("tsv_m", [*deltas, torch.zeros(shape).double()])
    assert close(found, reference([*arrays(deltas), np.zeros(shape)]))
    assert int(torch.linalg.matrix_rank(found)) == 4


def test_all_triplets_may_be_kept() -> None:
    deltas = deltas_of(3, (6, 9))
    assert close(merged("tsv_m", deltas, rank_share=1.0), reference(arrays(deltas), 6))
    assert close(merged("tsv_m", deltas, rank_share=0.5), reference(arrays(deltas), 3))


def test_a_side_shorter_than_the_sources_are_many_is_averaged() -> None:
    deltas = deltas_of(3, (2, 40))
    assert close(merged("tsv_m", deltas), sum(deltas) / 3, 1e-12)


def test_weights_multiply_the_task_vectors_and_scale_the_result() -> None:
    deltas = deltas_of(2, (7, 5))
    found = merged("tsv_m", deltas, weights=[2.0, -0.5], scale=0.3)
    assert close(found, 0.3 * reference(arrays([deltas[0] * 2, deltas[1] * -0.5])))


def test_the_result_has_no_higher_rank_than_all_that_was_kept() -> None:
    found = merged("tsv_m", deltas_of(3, (11, 20)))
    assert int(torch.linalg.matrix_rank(found)) == 3 * (11 // 3)
