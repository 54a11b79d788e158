from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.methods.spectral import doge
from tests.merge.methods.spectral.plain import LARGE, SHAPES, close, deltas_of, merged
from tests.merge.whole import merge_all

ETA = 0.07


def factors_of(deltas: list[Tensor]) -> list[float]:
    return [ETA / float(torch.linalg.vector_norm(delta)) for delta in deltas]


def loss(change: Tensor, deltas: list[Tensor]) -> Tensor:
    """The card's: over tasks and rows, <v, v - merged>^2."""
    together = sum(f * (d + change) for f, d in zip(factors_of(deltas), deltas, strict=True))
    return sum(((d * (d - together)).sum(dim=1) ** 2).sum() for d in deltas)


def descended(deltas: list[Tensor], steps: int, rate: float, subspace: int, projected: str) -> Tensor:
    """By torch's own gradients and Adam."""
    side, count = min(deltas[0].shape), len(deltas)
    each = side // count
    leading = [torch.linalg.svd(d, full_matrices=False)[0][:, :each] for d in deltas]
    together = (
        torch.linalg.svd(torch.cat(leading, dim=1), full_matrices=False)[0] if count > 1 else leading[0]
    )
    common = together[:, : side // subspace]
    away = torch.eye(deltas[0].shape[0]).double() - common @ common.T
    change = torch.nn.Parameter(torch.zeros_like(deltas[0]))
    adam = torch.optim.Adam([change], lr=rate)
    for _ in range(steps):
        adam.zero_grad()
        loss(change, deltas).backward()
        assert change.grad is not None
        change.grad.copy_(away @ change.grad)
        before = change.detach().clone()
        adam.step()
        if projected == "steps":
            change.data.copy_(before + away @ (change.detach() - before))
    return change.detach()


def reference(deltas: list[Tensor], **more: Any) -> Tensor:
    density = more.pop("density", 1.0)
    change = descended(deltas, **more)
    found = torch.zeros_like(change)
    for factor, delta in zip(factors_of(deltas), deltas, strict=True):
        keep = max(1, int(np.floor(round(density * delta.numel(), 9))))
        least = delta.abs().reshape(-1).sort(descending=True).values[keep - 1]
        found += factor * (delta + change) * (delta.abs() >= least)
    return found


@pytest.mark.parametrize("shape", [*SHAPES, LARGE[0]], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("projected", ["steps", "slopes"])
def test_agrees_with_an_independent_float64_reference(
    shape: tuple[int, int], count: int, projected: str
) -> None:
    deltas = deltas_of(count, shape)
    settings: dict[str, Any] = {"steps": 15, "rate": 1e-3, "subspace": 2, "projected": projected}
    assert close(merged("doge", deltas, density=1.0, **settings), reference(deltas, **settings), 1e-5)


@pytest.mark.parametrize("shape", [(40, 100), (100, 40)], ids=str)
@pytest.mark.parametrize("projected", ["steps", "slopes"])
def test_strips_of_columns_are_the_whole(
    shape: tuple[int, int], projected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are cut by the strips, whose inner products must come together at every step."""
    deltas = deltas_of(3, shape)
    settings: dict[str, Any] = {"steps": 30, "rate": 1e-3, "subspace": 2, "projected": projected}
    wanted = reference(deltas, **settings)
    for width in (7, 33, 1000):
        monkeypatch.setattr(doge, "LEAST_WIDTH", width)
        monkeypatch.setattr(doge, "STRIP_ENTRIES", 1)
        assert close(merged("doge", deltas, density=1.0, **settings), wanted, 1e-9)


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize("shape", [(120, 150), (150, 120)], ids=str)
def test_steps_in_float32_end_where_steps_in_float64_do(size: float, shape: tuple[int, int]) -> None:
    """All 400 of them: D is a few times its rounding to float32 off, also where changes are not small."""
    deltas = [delta.float() * size for delta in deltas_of(3, shape)]
    wide = [delta.double() for delta in deltas]
    begin, narrow_begin = (merged("doge", each, density=1.0, steps=0) for each in (wide, deltas))
    wanted = merged("doge", wide, density=1.0) - begin
    found = merged("doge", deltas, density=1.0).double() - narrow_begin.double()
    assert float(torch.linalg.vector_norm(found - wanted)) < 1e-4 * float(torch.linalg.vector_norm(wanted))


def test_worked_example_of_the_card() -> None:
    """The exact minimiser makes the merged row (1, 1), with a loss of 0."""
    deltas = [torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1.0, 1.0]]).double()]
    assert factors_of(deltas) == [pytest.approx(0.07), pytest.approx(0.0494975, abs=1e-7)]
    assert float(loss(torch.zeros(1, 2).double(), deltas)) == pytest.approx(4.12786, abs=1e-5)
    found = merged("doge", deltas, density=1.0, steps=500, rate=0.01, weights=[10.0, 10.0])
    assert close(found, torch.tensor([[1.0, 1.0]]), 1e-3)


@pytest.mark.parametrize("shape", [(9, 9), (14, 9)], ids=str)
def test_the_shared_directions_are_left_alone_unless_as_published(shape: tuple[int, int]) -> None:
    deltas = deltas_of(3, shape)
    leading = torch.cat([torch.linalg.svd(d, full_matrices=False)[0][:, :3] for d in deltas], dim=1)
    common = torch.linalg.svd(leading, full_matrices=False)[0][:, : 9 // 2]
    begin = merged("doge", deltas, density=1.0, steps=0)
    moved = {
        projected: merged("doge", deltas, density=1.0, subspace=2, rate=1e-2, projected=projected) - begin
        for projected in ("steps", "slopes")
    }
    assert float((common.T @ moved["steps"]).abs().max()) < 1e-6
    assert float((common.T @ moved["slopes"]).abs().max()) > 1e-3


def test_descent_lowers_the_loss() -> None:
    deltas = deltas_of(3, (9, 14))
    reach = sum(factors_of(deltas))
    together = sum(f * d for f, d in zip(factors_of(deltas), deltas, strict=True))
    change = (merged("doge", deltas, density=1.0, rate=0.01, steps=500) - together) / reach
    assert float(loss(change, deltas)) < 0.95 * float(loss(torch.zeros_like(change), deltas))


@pytest.mark.parametrize("density", [0.3, 0.01, 1.0])
def test_only_the_largest_entries_of_each_source_are_changed(density: float) -> None:
    deltas = deltas_of(2, (9, 14))
    settings: dict[str, Any] = {"steps": 5, "rate": 1e-3, "subspace": 6, "projected": "steps"}
    found = merged("doge", deltas, density=density, scope="tensor", **settings)
    assert close(found, reference(deltas, density=density, **settings), 1e-9)


def test_entries_are_ranked_over_the_whole_model() -> None:
    small, large = deltas_of(1, (6, 6))[0] / 100, deltas_of(1, (6, 6), seed=1)[0]
    tensors = {name: (torch.zeros(6, 6).double(), [delta]) for name, delta in (("a", small), ("b", large))}
    found = merge_all([("doge", {"density": 0.3})], tensors)
    assert int(torch.count_nonzero(found["a"])) == 0
    assert int(torch.count_nonzero(found["b"])) == int(0.3 * 72)
    alone = merge_all([("doge", {"density": 0.3, "scope": "tensor"})], tensors)
    assert int(torch.count_nonzero(alone["a"])) == 10


def test_limits_and_a_zero_task_vector() -> None:
    deltas = deltas_of(2, (6, 9))
    assert not bool(merged("doge", deltas, eta=0.0).any())
    zero = torch.zeros(6, 9).double()
    with_zero = merged("doge", [*deltas, zero], steps=0, density=1.0)
    assert close(with_zero, merged("doge", deltas, steps=0, density=1.0), 1e-12)
    assert not bool(merged("doge", [zero, zero]).any())


def test_a_sources_weight_multiplies_its_length() -> None:
    deltas = deltas_of(2, (6, 9))
    found = merged("doge", deltas, weights=[2.0, -1.0], steps=0, density=1.0)
    one, other = (f * d for f, d in zip(factors_of(deltas), deltas, strict=True))
    assert close(found, 2 * one - other, 1e-12)
    assert close(merged("doge", deltas, weights=[1.0, 0.0]), merged("doge", deltas[:1], subspace=6), 2e-2)


def test_copies_share_their_strongest_directions() -> None:
    """All directions of copies are shared alike: rounding must not choose which of them are left alone."""
    (delta,) = deltas_of(1, (12, 14))
    begin = merged("doge", [delta] * 2, density=1.0, steps=0)
    moved = merged("doge", [delta] * 2, density=1.0, rate=1e-2) - begin
    strongest = torch.linalg.svd(delta, full_matrices=False)[0][:, :2]
    assert float((strongest.T @ moved).abs().max()) < 1e-6 * float(moved.abs().max())
