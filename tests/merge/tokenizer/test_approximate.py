"""Making rows: against plain numpy, and exactly where the answer is known."""

from collections.abc import Iterator, Sequence

import numpy
import pytest
import torch
from torch import Tensor

from merge.tokenizer.approximate import drawn, lengths, moments, orthogonal_pursuit
from merge.tokenizer.neighbours import nearest_rows


class Held:
    """Rows in memory, in tiles of seven."""

    def __init__(self, rows: Tensor, tile: int = 7) -> None:
        self.rows, self.tile = rows, tile
        self.count, self.width = rows.shape

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        for first in range(0, self.count, self.tile):
            yield first, self.rows[first : first + self.tile]

    def take(self, positions: Sequence[int]) -> Tensor:
        return self.rows[list(positions)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pursuit_reference(target: numpy.ndarray, atoms: numpy.ndarray, k: int) -> dict[int, float]:
    """Orthogonal matching pursuit as the textbook has it, one target at a time, by least squares."""
    taken: list[int] = []
    left, amounts = target, numpy.zeros(0)
    units = atoms / numpy.linalg.norm(atoms, axis=1, keepdims=True)
    for _ in range(k):
        scores = numpy.abs(units @ left)
        scores[taken] = -1
        taken.append(int(scores.argmax()))
        amounts, *_ = numpy.linalg.lstsq(atoms[taken].T, target, rcond=None)
        left = target - atoms[taken].T @ amounts
    return dict(zip(taken, amounts, strict=True))


@pytest.mark.parametrize("k", [1, 3, 8])
def test_pursuit_is_the_textbooks(k: int) -> None:
    atoms, targets = normal(60, 24), normal(9, 24, seed=1)
    atoms[::3] *= 20  # long atoms must not be preferred
    found = orthogonal_pursuit(targets, Held(atoms), lengths(Held(atoms)), k)
    for row in range(9):
        wanted = pursuit_reference(targets[row].double().numpy(), atoms.double().numpy(), k)
        pairs = zip(found.chosen[row].tolist(), found.amounts[row].tolist(), strict=True)
        assert dict(pairs) == pytest.approx(wanted, abs=1e-9)
        made = sum(amount * atoms[at].double() for at, amount in wanted.items())
        rest = float((targets[row].double() - made).norm() / targets[row].double().norm())
        assert float(found.errors[row]) == pytest.approx(rest, abs=1e-9)


def test_pursuit_finds_a_combination_of_few_atoms_and_carries_it_over() -> None:
    atoms, others = normal(80, 32), normal(80, 5, seed=2)
    targets = torch.stack([0.5 * atoms[3] - 2 * atoms[70] + 0.25 * atoms[41], atoms[12], torch.zeros(32)])
    found = orthogonal_pursuit(targets, Held(atoms), lengths(Held(atoms)), 16)
    made = found.apply(Held(others))
    wanted = torch.stack([0.5 * others[3] - 2 * others[70] + 0.25 * others[41], others[12], torch.zeros(5)])
    torch.testing.assert_close(made, wanted.double(), atol=1e-5, rtol=1e-5)
    assert float(found.errors.max()) < 1e-6
    assert (found.chosen[2] == -1).all()


def test_pursuit_stands_doubled_zero_and_too_few_atoms() -> None:
    atoms = torch.cat([normal(3, 6), normal(3, 6), torch.zeros(2, 6)])
    found = orthogonal_pursuit(normal(2, 6, seed=3), Held(atoms), lengths(Held(atoms)), 64)
    assert torch.isfinite(found.amounts).all()
    assert (found.chosen >= 0).sum(dim=1).tolist() == [3, 3], "a twin or a zero row adds nothing"


def test_nearest_rows_weigh_by_one_over_the_distance() -> None:
    atoms, targets = normal(40, 8), normal(5, 8, seed=5)
    found = nearest_rows(targets, Held(atoms), lengths(Held(atoms)), 4)
    for row in range(5):
        far = (atoms - targets[row]).double().norm(dim=1)
        near = far.argsort()[:4]
        weights = (1 / far[near]) / (1 / far[near]).sum()
        wanted = dict(zip(near.tolist(), weights.tolist(), strict=True))
        pairs = zip(found.chosen[row].tolist(), found.amounts[row].tolist(), strict=True)
        assert dict(pairs) == pytest.approx(wanted, rel=1e-5)


def test_a_shared_row_is_its_own_nearest_and_stands_alone() -> None:
    atoms, others = normal(40, 8), normal(40, 3, seed=6)
    found = nearest_rows(atoms[[7, 30]], Held(atoms), lengths(Held(atoms)), 4)
    torch.testing.assert_close(found.apply(Held(others)), others[[7, 30]].double(), atol=1e-6, rtol=0)
    assert float(found.errors.max()) < 1e-6


def test_moments_are_those_of_all_rows() -> None:
    rows = normal(101, 6) * torch.arange(1, 7)
    known = moments(Held(rows), "deviation")
    torch.testing.assert_close(known.mean, rows.double().mean(dim=0))
    assert known.deviation is not None
    torch.testing.assert_close(known.deviation, rows.double().std(dim=0, correction=0))
    narrow = moments(Held(rows), "covariance")
    assert narrow.factor is not None
    torch.testing.assert_close(
        narrow.factor @ narrow.factor.T * 1e5, torch.cov(rows.double().T, correction=0), rtol=1e-6, atol=1e-6
    )


def test_draws_have_the_moments_and_depend_on_seed_name_and_row_alone() -> None:
    known = moments(Held(normal(50, 4) * 3 + 1), "deviation")
    many = torch.stack([drawn(known, 0, "a", row) for row in range(4000)])
    assert known.deviation is not None
    torch.testing.assert_close(many.mean(dim=0), known.mean, atol=0.25, rtol=0)
    torch.testing.assert_close(many.std(dim=0), known.deviation, atol=0.25, rtol=0)
    assert torch.equal(drawn(known, 0, "a", 7), many[7])
    assert not torch.equal(drawn(known, 1, "a", 7), many[7])
    assert not torch.equal(drawn(known, 0, "b", 7), many[7])


def test_a_flat_covariance_falls_back_to_draws_by_column() -> None:
    known = moments(Held(torch.ones(5, 3)), "covariance")
    assert torch.allclose(drawn(known, 0, "a", 1), torch.ones(3, dtype=torch.float64))
