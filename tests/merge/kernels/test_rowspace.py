"""Least squares over row spaces: the same minimum whichever way it is found."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from merge.kernels.rowspace import Pull, closed, flow, leading, whole


def pulls_of(deltas: Sequence[Tensor]) -> list[Pull]:
    """Every matrix asks for itself, on its own rows."""

    def pull(delta: Tensor) -> Pull:
        length = float(torch.linalg.vector_norm(delta))
        return Pull(delta, length, delta.clone, lambda rows: delta @ rows.T)

    return [pull(delta) for delta in deltas]


def matrices(count: int, shape: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=generator).double() for _ in range(count)]


@pytest.mark.parametrize("shape", [(30, 40), (8, 40), (40, 30)], ids=str)
def test_solving_gives_what_eigenvectors_give(shape: tuple[int, int]) -> None:
    """All of every direction by ``leading`` is by eigenvectors, ``whole`` solves; (8, 40) has few rows."""
    deltas = matrices(3, shape)
    start = matrices(4, shape)[3]
    solved = closed(pulls_of(deltas), start.clone(), whole)
    by_vectors = closed(pulls_of(deltas), start.clone(), leading(1.0))
    assert float((solved - by_vectors).abs().max()) < 1e-10
    gone_all_the_way = closed(pulls_of(deltas), start.clone(), flow(1e12))
    assert float((solved - gone_all_the_way).abs().max()) < 1e-8


@pytest.mark.parametrize(("least", "moves"), [(1e-2, True), (1e-4, True), (1e-6, False)])
def test_weak_directions_move_and_null_ones_stay(least: float, moves: bool) -> None:
    """Rows along the axes, the last of them weak: its square is above the limit, or below."""
    lengths = torch.tensor([1.0, 0.5, 0.25, least]).double()
    delta, start = torch.diag(lengths), torch.full((4, 4), 7.0).double()
    found = closed(pulls_of([delta]), start.clone(), whole)
    wanted = delta.clone()
    if not moves:
        wanted[:, 3] = start[:, 3]
    assert float((found - wanted).abs().max()) < 1e-6


def test_the_start_leaves_no_trace_where_every_direction_is_held() -> None:
    deltas = matrices(3, (20, 20))
    one, other = (closed(pulls_of(deltas), torch.full((20, 20), at).double(), whole) for at in (0.0, 1e6))
    assert torch.equal(one, other)
