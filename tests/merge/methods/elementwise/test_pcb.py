import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.merge.whole import merge_all, merge_one

Array = NDArray[np.float64]
CARD = [torch.tensor([1, -0.2, 0.5, 0]), torch.tensor([0.8, 0.4, -0.6, 0.1])]
PLAIN = {"clip": 0.0, "density": 0.5, "scale": 1.0}


def pcb(deltas: list[torch.Tensor], **settings: object) -> torch.Tensor:
    return merge_one([("pcb", PLAIN | settings)], torch.zeros_like(deltas[0]), deltas)


def test_worked_example_of_the_card() -> None:
    """Entry 2 of the second source sits on its quantile, and has a share of 0."""
    assert torch.allclose(pcb(CARD), torch.tensor([0.9, 0, 0, 0]))


@pytest.mark.parametrize("inter", ["products", "mixed", "normalized"])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_of_equal_sources_the_largest_entries_are_kept_as_they_are(count: int, inter: str) -> None:
    delta = torch.randn(100)
    made = pcb([delta] * count, inter=inter, density=0.2)
    kept = made != 0
    assert int(kept.sum()) == 19, "the one at the quantile has no share"
    assert torch.allclose(made[kept], delta[kept])
    assert delta[kept].abs().min() > delta[~kept].abs().max() - 1e-6


def test_every_entry_lies_between_the_sources_times_scale() -> None:
    deltas = [torch.randn(500) for _ in range(5)]
    made = pcb(deltas, density=0.9, scale=1.3) / 1.3
    assert bool((made <= torch.stack([*deltas, torch.zeros(500)]).amax(dim=0) + 1e-5).all())
    assert bool((made >= torch.stack([*deltas, torch.zeros(500)]).amin(dim=0) - 1e-5).all())


def test_an_entry_against_the_sum_is_never_kept() -> None:
    """At density 1 the published quantile lies among negative scores, and would give them a part."""
    deltas = [torch.tensor([3.0, 1.0, 2.0]), torch.tensor([-1.0, 1.5, 0.5])]
    assert float(pcb(deltas, density=1.0)[0]) == pytest.approx(3.0)


def test_clipping_keeps_an_outlier_from_hiding_everything_else() -> None:
    delta = torch.linspace(0.5, 1.0, 1000)
    delta[7] = 1000.0
    assert int((pcb([delta, delta], density=0.1) > 0).sum()) == 99
    made = pcb([delta, delta], density=0.1, clip=0.01)
    assert float(made.max()) < 1.0
    assert int((made > 0).sum()) == 99


def test_degenerate_task_vectors_divide_by_nothing() -> None:
    zeros, ones = torch.zeros(40), torch.ones(40)
    assert torch.equal(pcb([zeros, zeros]), zeros)
    assert torch.allclose(pcb([ones, zeros]), ones)
    assert torch.allclose(pcb([torch.tensor([5.0])]), torch.tensor([5.0])), "one entry has no rival"
    for inter in ("mixed", "normalized"):
        assert torch.allclose(pcb([ones, ones], inter=inter), ones)


def test_many_sources_do_not_overflow() -> None:
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(200, generator=generator)
    deltas = [common + 0.1 * torch.randn(200, generator=generator) for _ in range(120)]
    made = pcb(deltas, density=0.1)
    assert bool(torch.isfinite(made).all())
    assert int((made != 0).sum()) > 5


def test_global_scope_competes_over_the_whole_model() -> None:
    large, small = torch.linspace(1.0, 2.0, 50), torch.linspace(0.1, 0.2, 50)
    tensors = {"a": (torch.zeros(50), [large, large]), "b": (torch.zeros(50), [small, small])}
    made = merge_all([("pcb", {**PLAIN, "density": 0.2})], tensors)
    assert int((made["a"] != 0).sum()) == 19
    assert not made["b"].any()
    local = merge_all([("pcb", {**PLAIN, "density": 0.2, "scope": "tensor"})], tensors)
    assert int((local["b"] != 0).sum()) == 9


def test_weights_multiply_shares() -> None:
    deltas = [torch.tensor([1.0, 0.2]), torch.tensor([1.0, 0.1])]
    even = merge_one([("pcb", PLAIN)], torch.zeros(2), deltas, weights=[1.0, 1.0])
    for weight in (3.0, 1e-35, 1e35):
        tilted = merge_one([("pcb", PLAIN)], torch.zeros(2), deltas, weights=[weight, weight])
        assert torch.allclose(even, tilted)
    first = merge_one([("pcb", PLAIN)], torch.zeros(2), [deltas[0], deltas[1] * 2], weights=[1.0, 0.0])
    assert float(first[0]) == pytest.approx(1.0)


def test_a_negative_weight_takes_away_and_counts_as_much() -> None:
    deltas = [torch.tensor([1.0, 0.2, 0.0]), torch.tensor([1.0, 0.1, 0.0])]
    made = merge_one([("pcb", PLAIN)], torch.zeros(3), deltas, weights=[3.0, -1.0])
    assert torch.allclose(made, torch.tensor([0.5, 0.0, 0.0]))


def reference(deltas: Array, weights: list[float], density: float, clip: float, inter: str) -> Array:
    """As the authors write it, with full sorts; scores below zero lose."""
    count, entries = deltas.shape
    ordered = np.sort(np.abs(deltas), axis=1)
    cut = int(clip * entries)
    sizes = np.clip(np.abs(deltas), ordered[:, cut, None], ordered[:, entries - 1 - cut, None])
    low, high = sizes.min(axis=1, keepdims=True), sizes.max(axis=1, keepdims=True)
    normal = (sizes - low) / (high - low)
    signed = np.sign(deltas) * normal
    if inter == "products":
        between = np.tanh(deltas * deltas.sum(axis=0))
    elif inter == "mixed":
        between = np.tanh(deltas * signed.sum(axis=0))
    else:
        between = np.tanh(signed[:, None] * signed[None]).sum(axis=1)
    scores = np.exp(count * normal**2) * between
    least = np.maximum(np.sort(scores, axis=1)[:, math.floor((1 - density) * entries), None], 0)
    best = scores.max(axis=1, keepdims=True)
    shares = np.clip((scores - least) / (best - least), 0, None) * np.array(weights)[:, None]
    voters = shares.sum(axis=0)
    merged: Array = (shares * np.sign(deltas) * sizes).sum(axis=0) / np.where(voters > 0, voters, 1)
    return merged


@pytest.mark.parametrize("inter", ["products", "mixed", "normalized"])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_agrees_with_an_independent_float64_reference(count: int, inter: str) -> None:
    generator = torch.Generator().manual_seed(count)
    base = torch.zeros(1600)
    sources = [0.3 * torch.randn(1600, generator=generator) for _ in range(count)]
    weights = [1.0 + place / 4 for place in range(count)]
    settings = {"density": 0.25, "clip": 0.01, "scale": 0.7, "inter": inter}
    merged = merge_one([("pcb", settings)], base, sources, weights=weights)
    deltas = torch.stack(sources).double().numpy()
    wanted = 0.7 * reference(deltas, weights, 0.25, 0.01, inter)
    assert np.abs(merged.numpy() - wanted).max() < 1e-4
    assert np.count_nonzero(wanted) > 100
