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
from tests.merge.whole import merge_all


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


@pytest.mark.parametrize("shape", [(8, 6), (6, 9), *LARGE], ids=str)
@pytest.mark.parametrize("weights", [(0.3, 1.0, 2.5), (-0.7, 0.4, 1.0), (0.0, 1.3, -0.2), (0.0, 0.0, 0.0)])
def test_weights_multiply_the_task_vectors(shape: tuple[int, int], weights: tuple[float, ...]) -> None:
    deltas = deltas_of(3, shape)
    weighted = [weight * delta for weight, delta in zip(weights, arrays(deltas), strict=True)]
    assert close(merged("tsv_m", deltas, weights=weights), reference(weighted))
    many = [*deltas] * 3  # more sources than rows: averaged
    assert close(merged("tsv_m", many, weights=weights * 3), reference(weighted * 3))


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


def test_a_share_that_is_asked_for_is_rounded_down_but_never_to_nothing() -> None:
    """Of no triplet at all, a small share would give the whole mean in place of a few directions."""
    deltas = deltas_of(2, (12, 20))
    assert close(merged("tsv_m", deltas, rank_share=0.05), reference(arrays(deltas), 1))
    wide = deltas_of(2, (100, 101))
    assert close(merged("tsv_m", wide, rank_share=0.29), reference(arrays(wide), 29))


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


EXPERIMENTAL = {"variant": "reweighted_experimental"}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_outliers_and_equally_dense_the_variant_is_the_method(shape: tuple[int, int]) -> None:
    deltas = [delta.sign() * 0.25 for delta in deltas_of(3, shape)]
    assert torch.equal(merged("tsv_m", deltas, **EXPERIMENTAL), merged("tsv_m", deltas))


def by_the_definition(models: dict[str, list[Array]]) -> dict[str, Array]:
    """The variant's own equations, matrix by matrix, in numpy."""
    dense = {
        name: [float(np.mean(np.abs(d) >= 1e-3 * np.abs(d).max())) for d in deltas]
        for name, deltas in models.items()
    }
    means = np.mean(list(dense.values()), axis=0)
    found = {}
    for name, deltas in models.items():
        side, count = min(deltas[0].shape), len(deltas)
        scores = []
        for delta in deltas:
            size = np.abs(delta)
            scores.append((size * (size > size.mean() + 3 * size.std())).sum(axis=1))
        whole = np.sum(scores, axis=0)
        share = [np.where(whole > 0, count * s / np.where(whole > 0, whole, 1), 1.0) for s in scores]
        plain = side // count
        ranks = [
            min(max(1, int(plain * d / m + 1e-9)), 2 * plain) for d, m in zip(dense[name], means, strict=True)
        ]
        room = max(side, plain * count)
        if sum(ranks) > room:
            ranks = [max(1, rank * room // sum(ranks)) for rank in ranks]
        cut = [
            tuple(part[..., :rank] for part in parts(delta * w[:, None]))
            for delta, w, rank in zip(deltas, share, ranks, strict=True)
        ]
        left, values, right = (np.concatenate([part[at] for part in cut], axis=-1) for at in range(3))
        found[name] = (polar(left) * values) @ polar(right).T
    return found


def spotty(count: int, shape: tuple[int, int], seed: int) -> list[torch.Tensor]:
    """Task vectors with heavy tails, some of them mostly zeros."""
    deltas = [delta**5 for delta in deltas_of(count, shape, seed=seed)]
    thin = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    return [delta * thin if place == 1 else delta for place, delta in enumerate(deltas)]


def test_the_variant_follows_its_definition_over_all_matrices() -> None:
    tensors = {
        "a": (torch.zeros(9, 12).double(), spotty(3, (9, 12), 1)),
        "b": (torch.zeros(12, 9).double(), spotty(3, (12, 9), 2)),
        "c": (torch.zeros(7).double(), [torch.ones(7).double() * place for place in (1, 2, 3)]),
    }
    found = merge_all([("tsv_m", EXPERIMENTAL)], tensors)
    wanted = by_the_definition({name: arrays(tensors[name][1]) for name in "ab"})
    assert close(found["a"], wanted["a"], 1e-7) and close(found["b"], wanted["b"], 1e-7)
    assert close(found["c"], torch.full((7,), 2.0).double()), "vectors are averaged"
    assert not close(found["a"], merge_all([("tsv_m", {})], tensors)["a"], 1e-3)


def test_a_row_weighs_by_its_outliers_worked_by_hand() -> None:
    from merge.methods.spectral.tsv_m import ranks, reweighted

    quiet = torch.full((2, 10), 1.0).double()
    loud = quiet.clone()
    loud[0, 0] = 31.0
    first, second = reweighted([loud, quiet])
    assert close(first[0], loud[0] * 2) and close(second[0], quiet[0] * 0)
    assert close(first[1], loud[1]) and close(second[1], quiet[1])
    assert ranks(12, 4, [1.0, 1.0, 1.0]) == [4, 4, 4]
    assert ranks(12, 4, [0.5, 1.0, 1.5]) == [2, 4, 6]
    assert ranks(12, 4, [0.0, 9.0, 1.0]) == [1, 7, 3]


def test_zero_and_single_sources_do_no_harm_to_the_variant() -> None:
    deltas = [*spotty(2, (8, 6), 4), torch.zeros(8, 6).double()]
    assert bool(torch.isfinite(merged("tsv_m", deltas, **EXPERIMENTAL)).all())
    assert not bool(merged("tsv_m", [torch.zeros(8, 6).double()] * 3, **EXPERIMENTAL).any())
    (delta,) = spotty(1, (8, 6), 5)
    assert close(merged("tsv_m", [delta], **EXPERIMENTAL), delta)
