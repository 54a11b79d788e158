"""Fisher-weighted averaging: worked numbers, limits, and the equation in float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.errors import StatisticsMissing
from tests.merge.informed import Held
from tests.merge.whole import merge_all, merge_one

THETA = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 0.0, 5.0])]
FISHERS = [torch.tensor([1.0, 3.0, 0.0]), torch.tensor([3.0, 1.0, 0.0])]


def merged(
    sources: Sequence[Tensor],
    fishers: Sequence[Tensor | None],
    weights: Sequence[float] | None = None,
    **p: Any,
) -> Tensor:
    known = {
        f"m{i}": Held({"fisher/other": torch.ones(1), **({} if f is None else {"fisher/w": f})})
        for i, f in enumerate(fishers)
    }
    return merge_one([("fisher", p)], None, sources, statistics=known, weights=weights)


def test_the_worked_example_with_the_floor_on_both_and_on_the_target() -> None:
    both = merged(THETA, FISHERS, normalize="none")
    assert torch.allclose(both, torch.tensor([2.5, 1.5, 4.0]), atol=1e-5)
    target = merged(THETA, FISHERS, normalize="none", favor_target=True)
    assert torch.allclose(target, torch.tensor([2.5, 1.5, 3.0]), atol=1e-5)


@pytest.mark.parametrize("estimator", ["sampled", "argmax", "exact"])
def test_the_estimator_decides_which_statistic_is_read(estimator: str) -> None:
    kinds = {"sampled": "fisher", "argmax": "fisher_argmax", "exact": "fisher_exact"}
    known = {f"m{i}": Held({f"{kinds[estimator]}/w": f}) for i, f in enumerate(FISHERS)}
    steps = [("fisher", {"estimator": estimator, "normalize": "none"})]
    assert torch.allclose(
        merge_one(steps, None, THETA, statistics=known), torch.tensor([2.5, 1.5, 4.0]), atol=1e-5
    )
    others = [name for name in kinds if name != estimator]
    for other in others:
        with pytest.raises(StatisticsMissing, match=f"{kinds[other]} of m0"):
            merge_one([("fisher", {"estimator": other})], None, THETA, statistics=known)


def test_equal_fishers_give_the_weighted_mean() -> None:
    found = merged(THETA, [FISHERS[0], FISHERS[0]], [1.0, 3.0])
    assert torch.allclose(found, (THETA[0] + 3 * THETA[1]) / 4)


def test_the_scale_of_all_fishers_does_not_matter_and_that_of_one_only_without_normalising() -> None:
    sources, fishers = [torch.randn(8, 4) for _ in range(3)], [torch.rand(8, 4) for _ in range(3)]
    assert torch.allclose(merged(sources, fishers), merged(sources, [f * 1e-9 for f in fishers]), atol=1e-5)
    louder = [fishers[0] * 100, *fishers[1:]]
    assert torch.allclose(merged(sources, fishers), merged(sources, louder), atol=1e-5)
    raw = merged(sources, louder, normalize="none", floor=0.0)
    assert not torch.allclose(raw, merged(sources, fishers, normalize="none", floor=0.0), atol=1e-2)


@pytest.mark.parametrize("normalize", ["global", "tensor"])
@pytest.mark.parametrize("size", [1e-42, 1e-34, 1e30])
def test_fishers_of_any_size_count_alike(normalize: str, size: float) -> None:
    """A classifier that is never in doubt has slopes whose squares float32 can hardly hold."""
    found = merged(THETA, [FISHERS[0] * size, FISHERS[1]], normalize=normalize)
    assert torch.allclose(found, torch.tensor([2.5, 1.5, 4.0]), atol=1e-3)


def test_identical_models_return_themselves_to_the_bit() -> None:
    source = torch.randn(8, 4)
    assert torch.equal(
        merged([source.clone() for _ in range(3)], [torch.rand(8, 4) for _ in range(3)]), source
    )


def test_no_fisher_no_say_and_nobodys_fisher_is_the_mean() -> None:
    nothing = torch.zeros(3)
    assert torch.equal(merged(THETA, [torch.ones(3), nothing], floor=0.0), THETA[0])
    assert torch.equal(
        merged(THETA, [nothing, nothing], [3.0, 1.0], floor=0.0), (3 * THETA[0] + THETA[1]) / 4
    )


def test_a_tensor_that_one_source_was_not_measured_on_is_averaged() -> None:
    assert torch.equal(merged(THETA, [FISHERS[0], None]), (THETA[0] + THETA[1]) / 2)


def test_the_result_lies_between_the_sources() -> None:
    sources, fishers = [torch.randn(30, 20) for _ in range(4)], [torch.rand(30, 20) ** 4 for _ in range(4)]
    found, every = merged(sources, fishers), torch.stack(sources)
    assert bool((found >= every.amin(0) - 1e-6).all()) and bool((found <= every.amax(0) + 1e-6).all())


def test_it_is_the_equation_over_the_whole_model() -> None:
    draw, weights = np.random.default_rng(1), [1.0, 0.5, 2.0]
    shapes = {"a": (6, 5), "b": (7,)}
    theta = [{n: draw.normal(size=s) for n, s in shapes.items()} for _ in weights]
    f = [{n: draw.exponential(size=s) ** 3 for n, s in shapes.items()} for _ in weights]
    known = {f"m{i}": Held({f"fisher/{n}": torch.from_numpy(v) for n, v in f[i].items()}) for i in range(3)}
    tensors: Any = {n: (None, [torch.from_numpy(t[n]) for t in theta]) for n in shapes}
    found = merge_all([("fisher", {"floor": 0.1})], tensors, weights=weights, statistics=known)
    entries = sum(np.prod(s) for s in shapes.values())
    rms = [
        np.sqrt(sum((v.astype(np.float32).astype(float) ** 2).sum() for v in each.values()) / entries)
        for each in f
    ]
    for name in shapes:
        says = [w * np.maximum(each[name] / r, 0.1) for w, each, r in zip(weights, f, rms, strict=True)]
        wanted = sum(s * t[name] for s, t in zip(says, theta, strict=True)) / sum(says)
        assert np.allclose(found[name].numpy(), wanted, rtol=1e-6)
