from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merge.plan import plan_or_findings
from merge.recipe.recipe import recipe_from
from tests.merge import exact
from tests.merge.whole import merge_one

Step = tuple[str, Mapping[str, Any]]
MEAN: Step = ("task_arithmetic", {"normalize": True})


def repaired(
    base: torch.Tensor | None,
    sources: list[torch.Tensor],
    combine: Step = MEAN,
    weights: list[float] | None = None,
    **settings: object,
) -> torch.Tensor:
    return merge_one([combine, ("norm_repair", settings)], base, sources, weights=weights)


def test_worked_example() -> None:
    """Of (4, 0) and (0, 4) the mean is (2, 2), of length 2.83; it gets back the length 4."""
    made = repaired(torch.zeros(2), [torch.tensor([4.0, 0.0]), torch.tensor([0.0, 4.0])])
    assert torch.allclose(made, torch.full((2,), 8**0.5))


def test_the_change_gets_the_mean_length_of_the_sources_changes() -> None:
    base = torch.randn(300)
    sources = [base + size * torch.randn(300) for size in (0.1, 0.2, 0.3)]
    made = repaired(base, sources, weights=[1.0, 2.0, 1.0], most=10.0)
    lengths = [float((source - base).norm()) for source in sources]
    assert float((made - base).norm()) == pytest.approx(
        (lengths[0] + 2 * lengths[1] + lengths[2]) / 4, rel=1e-5
    )
    plain = merge_one([MEAN], base, sources, weights=[1.0, 2.0, 1.0])
    cosine = torch.nn.functional.cosine_similarity(made - base, plain - base, dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-6)


def test_without_a_base_the_tensor_itself_gets_the_sources_mean_length() -> None:
    sources = [torch.randn(300), torch.randn(300)]
    made = repaired(None, sources, ("linear", {}))
    assert float(made.norm()) == pytest.approx(sum(float(s.norm()) for s in sources) / 2, rel=1e-5)


def test_after_unlearning_the_length_of_the_base_comes_back() -> None:
    base, bad = torch.randn(300), torch.randn(300)
    made = repaired(base, [bad], ("unlearn", {"strength": 0.4}), to="base")
    assert float(made.norm()) == pytest.approx(float(base.norm()), rel=1e-5)


def test_one_source_copies_of_it_and_strength_zero_change_nothing() -> None:
    base, source = torch.zeros(60), torch.randn(60)
    for count in (1, 2, 8):
        assert torch.allclose(repaired(base, [source] * count), source, atol=1e-6)
    sources = [torch.randn(60), torch.randn(60)]
    assert torch.equal(repaired(base, sources, strength=0.0), merge_one([MEAN], base, sources))


def test_half_the_strength_goes_half_the_way_by_factor() -> None:
    sources = [torch.tensor([4.0, 0.0]), torch.tensor([0.0, 4.0])]
    assert torch.allclose(repaired(torch.zeros(2), sources, strength=0.5), torch.full((2,), 2 * 2**0.25))


def test_the_factor_is_bounded_both_ways() -> None:
    sources = [torch.tensor([1.0, 0.001]), torch.tensor([-1.0, 0.001])]
    assert torch.allclose(repaired(torch.zeros(2), sources, most=3.0), torch.tensor([0.0, 0.003]))
    far = repaired(torch.zeros(2), [sources[0]] * 4, ("task_arithmetic", {}), most=2.0)
    assert torch.allclose(far, sources[0] * 2)


def test_what_did_not_change_stays() -> None:
    base = torch.randn(9)
    assert torch.equal(repaired(base, [base, base]), base)
    opposite = [base + 1, base - 1]
    assert torch.allclose(repaired(base, opposite), base, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_agrees_with_an_independent_float64_reference(count: int, strength: float) -> None:
    """Changes of rank one, one of them zeros, another a copy, each with a weight."""
    generator = torch.Generator().manual_seed(count)
    base = torch.randn(6, 9, generator=generator).double()
    sides = torch.randn(count, 15, generator=generator).double()
    deltas = [torch.outer(side[:6], side[6:]) for side in sides]
    if count > 1:
        deltas[1] = torch.zeros_like(base)
    if count > 3:
        deltas[3] = deltas[0]
    weights = [1.0 + place / 2 for place in range(count)]
    plain = np.zeros((6, 9))
    wanted = 0.0
    for weight, delta in zip(weights, deltas, strict=True):
        plain += weight / sum(weights) * delta.numpy()
        wanted += weight / sum(weights) * float(np.sqrt((delta.numpy() ** 2).sum()))
    has = float(np.sqrt((plain**2).sum()))
    factor = min(3.0, (wanted / has) ** strength)
    made = repaired(base, [base + delta for delta in deltas], weights=weights, strength=strength, most=3.0)
    assert np.abs(made.numpy() - (base.numpy() + factor * plain)).max() < 1e-12


def test_the_length_of_a_base_needs_a_base(tmp_path: Path) -> None:
    models = exact.indices(exact.family(tmp_path, ("a", "b")))
    document = {
        "sources": [{"id": name, "model": name} for name in "ab"],
        "steps": ["linear", {"method": "norm_repair", "to": "base"}],
    }
    plan, findings = plan_or_findings(recipe_from(document), models, budget=1 << 30)
    assert plan is None
    assert [(f.code, f.pointer) for f in findings] == [("base_missing", "/steps/1/to")]
