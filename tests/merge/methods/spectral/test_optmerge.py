from typing import Any

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
    rotated,
)


def whole(deltas: list[torch.Tensor], **settings: Any) -> torch.Tensor:
    """The minimum itself, which is not the default."""
    return merged("optmerge", deltas, filter="none", **settings)


def cut(matrix: Array, rank: int) -> Array:
    left, values, right = parts(matrix) if matrix.any() else (matrix[:, :0], matrix[0, :0], matrix.T[:, :0])
    return (left[:, :rank] * values[:rank]) @ right[:, :rank].T


def pieces(deltas: list[Array], tuned: str) -> tuple[list[Array], list[Array], Array]:
    """Targets, Gram matrices and start of the two published scripts."""
    rank, center = min(deltas[0].shape) // len(deltas), np.mean(deltas, axis=0)
    targets, grams = [], []
    for delta in deltas:
        if not delta.any():
            continue
        targets.append(cut(delta, rank) if tuned == "lora" else center + cut(delta - center, rank))
        _, values, right = parts(delta)
        grams.append((right[:, :rank] * values[:rank] ** 2) @ right[:, :rank].T / np.sum(delta**2))
    return targets, grams, center if tuned == "lora" else np.sum(deltas, axis=0)


def reference(deltas: list[Array], tuned: str) -> Array:
    """The minimum of the loss nearest to the start, by the pseudo-inverse."""
    targets, grams, start = pieces(deltas, tuned)
    missing = sum((target - start) @ gram for target, gram in zip(targets, grams, strict=True))
    return start + missing @ np.linalg.pinv(sum(grams), rcond=1e-10, hermitian=True)


def test_worked_example_of_the_card_of_disjoint_rows() -> None:
    deltas = [torch.diag(torch.tensor([2.0, 0.0]).double()), torch.diag(torch.tensor([0.0, 4.0]).double())]
    assert close(whole(deltas, tuned="lora"), torch.diag(torch.tensor([2.0, 4.0])), 1e-12)


@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_agrees_with_an_independent_float64_reference(shape: tuple[int, int], count: int, tuned: str) -> None:
    deltas = deltas_of(count, shape)
    found = whole(deltas, tuned=tuned, scale=0.1)
    assert close(found, 0.1 * reference(arrays(deltas), tuned), 1e-7)


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_one_source_is_given_back_and_copies_give_what_they_keep(tuned: str) -> None:
    (delta,) = deltas_of(1, (6, 9))
    assert close(whole([delta], tuned=tuned), delta, 1e-9)
    copies = whole([delta] * 3, tuned=tuned)
    assert close(copies, reference([delta.numpy()] * 3, tuned), 1e-9)
    if tuned == "lora":
        assert close(copies, delta, 1e-9)


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_low_rank_and_zero_task_vectors(tuned: str) -> None:
    deltas = [*deltas_of(2, (12, 31), rank=2), torch.zeros(12, 31).double()]
    assert close(whole(deltas, tuned=tuned), reference(arrays(deltas), tuned), 1e-8)


def test_adapters_with_inputs_of_their_own_are_added_up() -> None:
    deltas = rotated(3, 12)
    assert close(whole(deltas, tuned="lora"), sum(deltas[1:], deltas[0]), 1e-10)


def test_a_side_shorter_than_the_sources_are_many_is_averaged() -> None:
    deltas = deltas_of(3, (2, 40))
    assert close(whole(deltas), sum(deltas) / 3, 1e-12)


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_the_published_iterations(tuned: str) -> None:
    deltas = deltas_of(2, (6, 15))
    targets, grams, start = pieces(arrays(deltas), tuned)
    found = torch.nn.Parameter(torch.from_numpy(start.copy()))
    rate = 1e-3
    full = torch.optim.Adam([found], lr=rate)
    optimiser = full if tuned == "full" else torch.optim.SGD([found], lr=rate, momentum=0.9)
    for _ in range(30):
        optimiser.zero_grad()
        off = [found - torch.from_numpy(target) for target in targets]
        total = sum((each @ torch.from_numpy(g) * each).sum() for each, g in zip(off, grams, strict=True))
        total.backward()
        optimiser.step()
    made = merged("optmerge", deltas, tuned=tuned, solver="iterate", rate=rate, steps=30)
    assert close(made, found.detach(), 1e-9)


def test_gradient_flow_of_no_time_is_the_start_and_of_long_time_the_minimum() -> None:
    deltas = deltas_of(2, (6, 15))
    start = np.sum(arrays(deltas), axis=0)
    assert close(merged("optmerge", deltas, filter="flow", time=1e-12), start, 1e-9)
    assert close(merged("optmerge", deltas, filter="flow", time=1e9), whole(deltas), 1e-9)


def test_by_default_the_weak_directions_that_are_kept_do_not_run_away() -> None:
    deltas = deltas_of(5, (48, 48))
    summed = torch.linalg.vector_norm(sum(deltas[1:], deltas[0]))
    assert torch.linalg.vector_norm(merged("optmerge", deltas)) < 2 * summed
    assert torch.linalg.vector_norm(whole(deltas)) > 2 * summed
