from pathlib import Path

import numpy as np
import pytest
import torch

from merge.plan import plan_or_findings
from merge.recipe.recipe import recipe_from
from tests.merge import exact
from tests.merge.whole import merge_one


def unlearn(
    base: torch.Tensor, sources: list[torch.Tensor], role: str = "linear", **settings: object
) -> torch.Tensor:
    return merge_one([("unlearn", settings)], base, sources, role=role)


def test_worked_example_of_the_card() -> None:
    """W = 1 stands beside the origin 0 as a source to keep; F = .4 is half taken back."""
    made = unlearn(torch.zeros(1), [torch.ones(1), torch.tensor([0.4])], keep=(True, False))
    assert float(made) == pytest.approx(0.8)


def test_it_is_negation() -> None:
    base, sources = torch.randn(300), [torch.randn(300) for _ in range(3)]
    plain = merge_one([("task_arithmetic", {"scale": -0.3})], base, sources)
    assert torch.allclose(unlearn(base, sources, strength=0.3), plain, atol=1e-6)


def test_taking_back_and_adding_again_restores_the_model() -> None:
    base, bad = torch.randn(300), torch.randn(300)
    changed = unlearn(base, [bad], strength=0.7)
    back = unlearn(base, [changed, changed + 0.7 * (bad - base)], keep=(True, False), strength=-0.0)
    assert torch.allclose(back, changed)
    assert torch.allclose(changed + 0.7 * (bad - base), base, atol=1e-6)


def test_strength_zero_and_an_unwanted_model_that_changed_nothing_give_the_base() -> None:
    base = torch.randn(300)
    assert torch.equal(unlearn(base, [torch.randn(300)], strength=0.0), base)
    assert torch.equal(unlearn(base, [base.clone()]), base)


def test_only_the_largest_entries_are_taken_back() -> None:
    bad = torch.tensor([4.0, -3.0, 2.0, -1.0])
    assert unlearn(torch.zeros(4), [bad], top=0.5, strength=1.0).tolist() == [-4.0, 3.0, 0.0, 0.0]


def test_what_a_kept_skill_moved_is_protected() -> None:
    base, good, bad = torch.zeros(3), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.5, 4.0, 1.0])
    made = unlearn(base, [good, bad], keep=(True, False), protect=2.0, strength=1.0)
    assert made.tolist() == [1.0, -3.0, -1.0]


@pytest.mark.parametrize("role", ["embed", "head", "norm", "bias"])
def test_embeddings_heads_norms_and_biases_are_left_alone_unless_asked_for(role: str) -> None:
    base, bad, good = torch.randn(9), torch.randn(9), torch.randn(9)
    assert torch.equal(unlearn(base, [bad], role), base)
    assert torch.allclose(unlearn(base, [bad, good], role, keep=(False, True)), good, atol=1e-6)
    assert not torch.equal(unlearn(base, [bad], role, tensors="all"), base)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_agrees_with_an_independent_float64_reference(count: int) -> None:
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(13, 29, generator=generator)
    sources = [base + 0.1 * torch.randn(13, 29, generator=generator) for _ in range(count)]
    weights = [1.0 + place / 4 for place in range(count)]
    keep = tuple(place % 2 == 1 for place in range(count))
    settings = {"keep": keep, "strength": 0.6, "top": 0.25, "protect": 0.5}
    merged = merge_one([("unlearn", settings)], base, sources, weights=weights)
    moves = [w * (s.double() - base.double()).numpy() for w, s in zip(weights, sources, strict=True)]
    kept = [move for move, stays in zip(moves, keep, strict=True) if stays]
    wanted = base.double().numpy() + sum(kept)
    for move, stays in zip(moves, keep, strict=True):
        if not stays:
            largest = np.abs(move) >= np.sort(np.abs(move).reshape(-1))[::-1][int(0.25 * move.size) - 1]
            free = np.abs(move) > 0.5 * np.abs(kept).max(axis=0) if kept else True
            wanted = wanted - 0.6 * move * largest * free
    assert np.abs(merged.numpy() - wanted).max() < 1e-6


def test_the_plan_says_that_it_reduces_and_does_not_delete(tmp_path: Path) -> None:
    models = exact.indices(exact.family(tmp_path, ("base", "a")))
    document = {"base": "base", "sources": [{"id": "a", "model": "a"}], "steps": ["unlearn"]}
    _, findings = plan_or_findings(recipe_from(document), models, budget=1 << 30)
    (told,) = [finding for finding in findings if finding.code == "method_caution"]
    assert "does not delete" in told.message
    assert told.severity == "warning"
