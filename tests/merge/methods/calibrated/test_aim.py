"""AIM: the published numbers, the released formula, its limits, and that it follows every combine method."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.contract.method import Kind
from merge.errors import StatisticsMissing, StatisticsUnfit
from tests.merge.every import METHODS, count_of
from tests.merge.informed import Held
from tests.merge.whole import merge_all, merge_one

BASE = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
MERGED = torch.tensor([[2.0, 4.0], [1.0, 5.0]])
ACTIVITY = torch.tensor([0.5, 2.0])
COMBINES = [method for method in METHODS if method.kind is Kind.COMBINE]


def after(
    base: Tensor, merged: Tensor, activity: Tensor | None, axis: int | None = None, **settings: Any
) -> Tensor:
    """AIM on a merge that is one source as it stands."""
    values = {"mean_abs_input/other": torch.ones(1)}
    if activity is not None:
        values["mean_abs_input/w"] = activity
    known = {"base": Held(values, {} if axis is None else {"w": axis})}
    return merge_one([("passthrough", {}), ("aim", settings)], base, [merged], statistics=known)


def test_the_worked_example() -> None:
    wanted = torch.tensor([[1.85, 2.8], [1.3, 4.4]])
    assert torch.allclose(after(BASE, MERGED, ACTIVITY, omega=0.4), wanted, atol=1e-6)


def test_weights_stored_as_in_by_out_are_held_back_along_their_rows() -> None:
    turned = after(BASE.T.contiguous(), MERGED.T.contiguous(), ACTIVITY, axis=0, omega=0.4)
    assert torch.equal(turned.T, after(BASE, MERGED, ACTIVITY, omega=0.4))


def test_a_norm_is_held_back_entry_by_entry() -> None:
    found = after(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 3.0]), ACTIVITY, axis=0, omega=0.4)
    assert torch.allclose(found, torch.tensor([1.85, 1.8]))


def test_each_expert_of_a_stack_is_seen_on_its_own() -> None:
    base, merged = torch.zeros(2, 3, 2), torch.ones(2, 3, 2)
    found = after(base, merged, torch.tensor([[1.0, 4.0], [50.0, 0.0]]), axis=2, omega=0.0)
    assert torch.equal(found[:, 0], torch.tensor([[0.75, 0.0], [0.0, 1.0]]))
    turned = after(
        torch.zeros(2, 2, 3), torch.ones(2, 2, 3), torch.tensor([[1.0, 4.0], [50.0, 0.0]]), axis=1, omega=0.0
    )
    assert torch.equal(turned, found.transpose(1, 2))


@pytest.mark.parametrize("omega", [0.0, 0.2, 0.4, 0.6, 1.0])
def test_it_agrees_with_the_released_formula_to_rounding(omega: float) -> None:
    draw = np.random.default_rng(3)
    base = draw.normal(size=(67, 129)).astype(np.float32)
    merged = (base + 0.05 * draw.normal(size=base.shape)).astype(np.float32)
    sums = draw.exponential(size=129).astype(np.float32) * 40
    saliency = np.abs(sums) / np.max(np.abs(sums))
    released = base + (merged - base) * (1 - saliency * (1 - omega))
    ours = after(torch.from_numpy(base), torch.from_numpy(merged), torch.from_numpy(sums) / 40, omega=omega)
    assert np.allclose(ours.numpy(), released, rtol=2e-7, atol=1e-7)
    exact = base + (merged.astype(np.float64) - base) * (1 - saliency.astype(np.float64) * (1 - omega))
    assert np.max(np.abs(ours.numpy() - exact)) < 1e-6


def test_omega_one_gives_the_merge_itself() -> None:
    base, merged = torch.randn(9, 5), torch.randn(9, 5)
    assert torch.equal(after(base, merged, torch.rand(5), omega=1.0), merged)


def test_omega_zero_gives_the_base_in_the_most_active_channel() -> None:
    base, merged = torch.randn(9, 5), torch.randn(9, 5)
    found = after(base, merged, torch.tensor([0.1, 3.0, 0.0, 1.0, 2.0]), omega=0.0)
    assert torch.equal(found[:, 1], base[:, 1])
    assert torch.equal(found[:, 2], merged[:, 2]), "a dead channel has nothing to protect"


def test_channels_alike_shrink_the_change_alike() -> None:
    base, merged = torch.randn(9, 5), torch.randn(9, 5)
    found = after(base, merged, torch.full((5,), 0.3), omega=0.25)
    assert torch.allclose(found, base + 0.25 * (merged - base))


def test_a_module_that_never_saw_anything_but_zeros_keeps_the_merge() -> None:
    base, merged = torch.randn(4, 5), torch.randn(4, 5)
    assert torch.equal(after(base, merged, torch.zeros(5), omega=0.0), merged)


def test_nothing_changed_stays_the_base_and_scale_of_the_activity_does_not_matter() -> None:
    base, merged, activity = torch.randn(4, 5), torch.randn(4, 5), torch.rand(5)
    assert torch.equal(after(base, base.clone(), activity), base)
    assert torch.equal(after(base, merged, activity * 8), after(base, merged, activity))


def test_what_is_left_lies_between_base_and_merge() -> None:
    base, merged = torch.randn(40, 50), torch.randn(40, 50)
    left = after(base, merged, torch.rand(50), omega=0.3) - base
    assert bool((left * (merged - base) >= 0).all())
    assert bool((left.abs() <= (merged - base).abs() * (1 + 1e-6)).all())


def test_the_uniform_control_shrinks_to_the_same_norm_in_the_same_direction() -> None:
    base, merged, activity = torch.randn(40, 50), torch.randn(40, 50), torch.rand(50)
    informed = after(base, merged, activity, omega=0.3) - base
    uniform = after(base, merged, activity, omega=0.3, control="uniform") - base
    assert torch.isclose(informed.norm(), uniform.norm(), rtol=1e-5)
    assert torch.nn.functional.cosine_similarity(uniform.flatten(), (merged - base).flatten(), 0) > 1 - 1e-6
    assert torch.equal(after(base, base.clone(), activity, control="uniform"), base)
    assert torch.equal(after(base, merged, activity, omega=1.0, control="uniform"), merged)


def test_tensors_without_channels_are_left_or_put_back() -> None:
    base, merged = torch.randn(4, 5), torch.randn(4, 5)
    assert torch.equal(after(base, merged, None), merged)
    assert torch.equal(after(base, merged, None, unmeasured="base"), base)


def test_statistics_of_another_model_are_refused() -> None:
    with pytest.raises(StatisticsUnfit, match="mean_abs_input/w of memory is \\[3\\]"):
        after(BASE, MERGED, torch.ones(3))
    with pytest.raises(StatisticsMissing, match="mean_abs_input of base"):
        merge_one([("passthrough", {}), ("aim", {})], BASE, [MERGED], statistics={"base": Held({})})


@pytest.mark.parametrize("inner", COMBINES, ids=[method.name for method in COMBINES])
def test_it_follows_every_combine_method(inner: Any) -> None:
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(12, 6, generator=generator)
    sources = [base + 0.1 * torch.randn(12, 6, generator=generator) for _ in range(count_of(inner))]
    tensors = {"a": (base, sources), "b": (base.T.contiguous(), [s.T.contiguous() for s in sources])}
    plain = merge_all([(inner.name, {})], tensors)
    held = merge_all([(inner.name, {}), ("aim", {"omega": 0.4})], tensors)
    for name, (start, _) in tensors.items():
        before, left = plain[name] - start, held[name] - start
        assert bool((left.abs() <= before.abs() + 1e-6).all())
        if float(before.norm()) > 0:
            assert float(left.norm()) < float(before.norm())
