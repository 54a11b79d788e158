"""Groups of rank-one pieces, held against k-means on the pieces written out."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from merge.kernels.units import _filled, alike, alike_by_parts, grouped, lengths_of

Points = NDArray[np.float64]


def by_lloyd(points: Points, lengths: Points, count: int) -> tuple[list[list[int]], int]:
    """Groups of k-means with the same beginning, and the rounds it took."""
    seeds = [int(lengths.argmax())]
    while len(seeds) < count:
        nearest = np.min([((points - points[seed]) ** 2).sum(axis=1) for seed in seeds], axis=0)
        seeds.append(int((nearest * lengths**2).argmax()))
    centres, before, rounds = points[seeds], None, 0
    while True:
        belongs = np.array([((centres - point) ** 2).sum(axis=1).argmin() for point in points])
        if before is not None and (belongs == before).all():
            return [np.flatnonzero(belongs == place).tolist() for place in range(count)], rounds
        centres = np.stack([points[belongs == place].mean(axis=0) for place in range(count)])
        before, rounds = belongs, rounds + 1


@pytest.mark.parametrize("by_parts", [False, True])
def test_groups_are_those_of_k_means_on_what_the_pieces_are(by_parts: bool) -> None:
    most = 0
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        left, right = torch.randn(3, 40, generator=generator), torch.randn(40, 3, generator=generator)
        left, right = left.double(), right.double()
        b, a = (each / np.linalg.norm(each, axis=1)[:, None] for each in (left.T.numpy(), right.numpy()))
        points = np.hstack([b, a]) if by_parts else np.einsum("ki,kj->kij", b, a).reshape(40, -1)
        lengths = lengths_of(left, right)
        wanted, rounds = by_lloyd(points, lengths.numpy(), 4)
        likeness = (alike_by_parts if by_parts else alike)(left, right)
        assert [group.tolist() for group in grouped(likeness, lengths, 4, 50)] == wanted, seed
        most = max(most, rounds)
    assert most > 2, "more than one round matters"


def test_fewer_different_pieces_make_fewer_groups() -> None:
    left, right = torch.eye(3).double()[:, [0, 1, 0, 1]], torch.eye(3).double()[[0, 1, 0, 1]]
    groups = grouped(alike(left, right), lengths_of(left, right), 3, 50)
    assert sorted(group.tolist() for group in groups) == [[0, 2], [1, 3]]


def test_a_group_left_empty_gets_the_piece_that_is_farthest_from_its_own() -> None:
    distances = torch.tensor([[0.0, 5.0, 5.0], [1.0, 6.0, 6.0], [2.0, 7.0, 7.0]])
    assert _filled(distances, 3).tolist() == [0, 2, 1]
