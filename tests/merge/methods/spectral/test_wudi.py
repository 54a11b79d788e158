from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.merge.methods.spectral.plain import LARGE, SHAPES, Array, arrays, close, deltas_of, merged, rotated

MINIMUM: dict[str, Any] = {"filter": "none", "start": "sum"}
"""The published loss's minimum that is nearest to the sum."""


def loss(found: Array, deltas: list[Array]) -> float:
    """The paper's, with the start's share of nothing taken out."""
    return float(sum(np.sum(((found - d) @ d.T) ** 2) / np.sum(d**2) for d in deltas if d.any()))


def reference(deltas: list[Array], start: Array) -> Array:
    """The minimum nearest to the start: the same least squares as one tall system, solved by numpy."""
    known = [delta for delta in deltas if delta.any()]
    rows = np.concatenate([delta / np.linalg.norm(delta) for delta in known])
    wanted = np.concatenate([(d - start) @ d.T / np.linalg.norm(d) for d in known], axis=1)
    return start + np.linalg.lstsq(rows, wanted.T, rcond=1e-5)[0].T


def tensors(*rows: list[list[float]]) -> list[Tensor]:
    return [torch.tensor(each).double() for each in rows]


def test_worked_examples_of_the_card() -> None:
    apart = [torch.diag(torch.tensor(d).double()) for d in ([2.0, 0.0], [0.0, 4.0])]
    assert close(merged("wudi", apart, **MINIMUM), torch.diag(torch.tensor([2.0, 4.0])), 1e-12)
    conflict = tensors([[2.0, 0.0]], [[1.0, 1.0]])
    found = merged("wudi", conflict, **MINIMUM)
    assert close(found, torch.tensor([[2.0, 0.0]]), 1e-12)
    assert loss(found.numpy(), arrays(conflict)) == pytest.approx(0.0, abs=1e-20)
    assert loss(sum(arrays(conflict)), arrays(conflict)) == pytest.approx(3.0)
    assert loss(sum(arrays(conflict)) / 2, arrays(conflict)) == pytest.approx(0.25)
    alike = tensors([[2.0, 0.0]], [[1.0, 0.0]])
    assert close(merged("wudi", alike, **MINIMUM), torch.tensor([[1.5, 0.0]]), 1e-12)


@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("start", ["sum", "mean", "zero"])
def test_agrees_with_an_independent_float64_reference(shape: tuple[int, int], count: int, start: str) -> None:
    deltas = deltas_of(count, shape)
    begin = np.sum(arrays(deltas), axis=0) * {"sum": 1.0, "mean": 1 / count, "zero": 0.0}[start]
    found = merged("wudi", deltas, filter="none", start=start, scale=0.5)
    assert close(found, 0.5 * reference(arrays(deltas), begin), 1e-7)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (20, 20)], ids=str)
def test_low_rank_and_zero_task_vectors_leave_the_start_where_nothing_pulls(shape: tuple[int, int]) -> None:
    deltas = [*deltas_of(2, shape, rank=2), torch.zeros(shape).double()]
    known = arrays(deltas)
    assert close(merged("wudi", deltas, **MINIMUM), reference(known, np.sum(known, axis=0)), 1e-7)


def test_the_closed_form_is_where_gradient_descent_ends() -> None:
    deltas = arrays(deltas_of(3, (4, 7), rank=1))
    grams = [delta.T @ delta / np.sum(delta**2) for delta in deltas]
    found = np.sum(deltas, axis=0)
    for _ in range(20_000):
        found -= 0.2 * sum((found - d) @ gram for d, gram in zip(deltas, grams, strict=True))
    assert close(merged("wudi", deltas_of(3, (4, 7), rank=1), **MINIMUM), found, 1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_source_and_copies_of_one_give_it_back(shape: tuple[int, int]) -> None:
    (delta,) = deltas_of(1, shape)
    for settings in ({}, *({"filter": "none", "start": start} for start in ("sum", "mean", "zero"))):
        assert close(merged("wudi", [delta], **settings), delta, 1e-9)
        assert close(merged("wudi", [delta] * 3, **settings), delta, 1e-9)


def test_sources_with_inputs_of_their_own_are_added_up() -> None:
    deltas = rotated(3, 12)
    assert close(merged("wudi", deltas, **MINIMUM), sum(deltas[1:], deltas[0]), 1e-12)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5)], ids=str)
def test_no_small_change_lowers_the_loss(shape: tuple[int, int]) -> None:
    deltas = arrays(deltas_of(3, shape))
    found = merged("wudi", deltas_of(3, shape), filter="none").numpy()
    for change in deltas_of(5, shape, seed=8):
        assert loss(found + 1e-3 * change.numpy(), deltas) >= loss(found, deltas)


def spectrum(deltas: list[Array]) -> tuple[Array, Array]:
    values, vectors = np.linalg.eigh(sum(d.T @ d / np.sum(d**2) for d in deltas))
    return values[::-1], vectors[:, ::-1]


@pytest.mark.parametrize("shape", [(5, 30), (30, 5)], ids=str)
@pytest.mark.parametrize(
    "settings",
    [{"filter": "share", "keep": 0.6}, {"filter": "auto"}, {"filter": "flow", "time": 2.0}],
    ids=str,
)
@pytest.mark.parametrize("start", ["sum", "mean"])
def test_filters_go_part_of_the_way(shape: tuple[int, int], settings: dict[str, Any], start: str) -> None:
    """Along the eigenvectors of the summed Gram matrix, from the start to the minimum."""
    given = [delta * torch.linspace(3, 0.2, shape[1]) for delta in deltas_of(3, shape)]
    deltas = arrays(given)
    values, vectors = spectrum(deltas)
    real = values > 1e-10 * values[0]
    values, vectors = values[real], vectors[:, real]
    count = {"share": round(0.6 * values.size), "auto": round(np.sqrt(values).sum() ** 2 / values.sum())}
    if settings["filter"] == "flow":
        part = 1 - np.exp(-2.0 * values)
    else:
        part = (np.arange(values.size) < count[settings["filter"]]).astype(float)
        assert 0 < part.sum() < values.size
    begin = np.sum(deltas, axis=0) / (3 if start == "mean" else 1)
    wanted = begin + (reference(deltas, begin) - begin) @ (vectors * part) @ vectors.T
    assert close(merged("wudi", given, start=start, **settings), wanted, 1e-7)


def test_by_default_directions_that_hardly_take_part_keep_the_mean_of_those_that_changed_something() -> None:
    deltas = [*deltas_of(3, (5, 30)), torch.zeros(5, 30).double()]
    found = merged("wudi", deltas)
    assert torch.equal(found, merged("wudi", deltas, filter="auto", start="mean"))
    mean = sum(deltas[1:], deltas[0]) / 3
    values, vectors = spectrum(arrays(deltas[:3]))
    weakest = torch.from_numpy(vectors[:, values > 1e-10 * values[0]][:, -1].copy())
    assert float(((found - mean) @ weakest).abs().max()) < 1e-9
    assert float(((merged("wudi", deltas, filter="none") - mean) @ weakest).abs().max()) > 0.1


@pytest.mark.parametrize("shape", [(3, 20), (20, 3)], ids=str)
def test_the_published_iteration_is_adam_from_the_sum(shape: tuple[int, int]) -> None:
    deltas = deltas_of(3, shape)
    found = torch.nn.Parameter(sum(deltas[1:], deltas[0]).clone())
    adam = torch.optim.Adam([found], lr=1e-3)
    for _ in range(40):
        adam.zero_grad()
        total = sum((((found - d) @ d.T) ** 2).sum() / (d**2).sum() for d in deltas)
        total.backward()
        adam.step()
    assert close(
        merged("wudi", deltas, solver="adam", start="sum", steps=40, rate=1e-3), found.detach(), 1e-9
    )
    assert torch.equal(
        merged("wudi", deltas, solver="adam", start="sum", steps=0), sum(deltas[1:], deltas[0])
    )


def test_weights_multiply_the_task_vectors() -> None:
    deltas = deltas_of(2, (5, 9))
    wanted = reference(arrays([deltas[0] * 2, -deltas[1]]), (deltas[0] * 2 - deltas[1]).numpy())
    assert close(merged("wudi", deltas, weights=[2.0, -1.0], **MINIMUM), wanted, 1e-8)
