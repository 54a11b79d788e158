from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merge.errors import Finding
from merge.plan import plan_or_findings
from merge.recipe.recipe import recipe_from
from tests.merge import exact
from tests.merge.whole import merge_one

CARD = [[1, 0.5, 0, -0.2], [0.9, -0.4, 0.3, 0.1], [1.1, 0, 0, 0.15]]
DELTAS = [torch.tensor(delta) for delta in CARD]


def consensus(deltas: list[torch.Tensor], **settings: object) -> torch.Tensor:
    return merge_one([("consensus_ta", settings)], torch.zeros_like(deltas[0]), deltas)


def test_worked_example_of_the_card_loses_the_unanimous_entry() -> None:
    assert torch.allclose(consensus(DELTAS, threshold=0.6), torch.tensor([0, 0.1, 0, 0.05]))


def test_a_threshold_below_the_bound_keeps_the_unanimous_entry() -> None:
    assert torch.allclose(consensus(DELTAS, threshold=0.4), torch.tensor([3.0, 0.1, 0, 0.05]))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_equal_sources_are_kept_below_the_bound_and_lost_from_it_on(count: int) -> None:
    delta, bound = torch.randn(40).round(decimals=2), 1 / (count - 1)
    assert torch.allclose(consensus([delta] * count, threshold=bound - 0.01), delta * count)
    assert not consensus([delta] * count, threshold=bound + 0.01).any()


def test_without_a_mask_it_is_task_arithmetic() -> None:
    base, sources = torch.randn(90), [torch.randn(90) for _ in range(4)]
    weights = [1.0, 0.5, -2.0, 0.25]
    plain = merge_one([("task_arithmetic", {"scale": 0.3})], base, sources, weights=weights)
    made = merge_one([("consensus_ta", {"agree": 0, "scale": 0.3})], base, sources, weights=weights)
    assert torch.allclose(made, plain, atol=1e-6)


def test_agree_one_drops_only_what_nobody_holds() -> None:
    """Each is outweighed by the others in the first entry; in the second one source stands alone."""
    deltas = [torch.tensor([1.0, 5.0]), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])]
    assert consensus(deltas, agree=1, threshold=0.6).tolist() == [0.0, 5.0]
    assert consensus(deltas, agree=2, threshold=0.6).tolist() == [0.0, 0.0]


def test_fewer_sources_than_must_agree_must_all_agree() -> None:
    delta = torch.randn(30)
    assert torch.equal(consensus([delta]), delta)
    assert torch.equal(consensus([delta], agree=5), delta)


def test_each_source_may_have_its_own_threshold() -> None:
    deltas = [torch.tensor([1.0]), torch.tensor([3.0])]
    assert consensus(deltas, threshold=(0.3, 0.3)).tolist() == [4.0]
    assert consensus(deltas, threshold=(0.5, 0.3)).tolist() == [0.0]


def test_zero_changes_and_a_zero_source_do_no_harm() -> None:
    base, delta = torch.randn(9), torch.ones(9)
    assert torch.equal(merge_one([("consensus_ta", {})], base, [base] * 3), base)
    merged = merge_one([("consensus_ta", {})], base, [base, base + delta, base + delta])
    assert torch.allclose(merged, base + 2 * delta)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_agrees_with_an_independent_float64_reference(count: int) -> None:
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(13, 29, generator=generator)
    sources = [base + 0.1 * torch.randn(13, 29, generator=generator) for _ in range(count)]
    weights = [1.0 + place / 4 for place in range(count)]
    settings = {"threshold": 0.37, "agree": 2, "scale": 0.5}
    merged = merge_one([("consensus_ta", settings)], base, sources, weights=weights)
    moves = [w * (s.double() - base.double()).numpy() for w, s in zip(weights, sources, strict=True)]
    together = np.sum(moves, axis=0)
    holders = sum((np.abs(m) > 0.37 * np.abs(together - m)).astype(int) for m in moves)
    wanted = base.double().numpy() + 0.5 * together * (holders >= min(2, count))
    assert np.abs(merged.numpy() - wanted).max() < 1e-6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return exact.family(tmp_path_factory.mktemp("family"))


def cautions(folders: Mapping[str, Path], sources: str, **settings: Any) -> list[Finding]:
    recipe = recipe_from(
        {
            "base": "base",
            "sources": [{"id": name, "model": name} for name in sources],
            "steps": [{"method": "consensus_ta", **settings}],
        }
    )
    plan, findings = plan_or_findings(recipe, exact.indices(folders), budget=1 << 30)
    assert plan is not None
    return [finding for finding in findings if finding.code == "method_caution"]


def test_the_plan_warns_of_a_threshold_that_loses_what_is_unanimous(folders: Mapping[str, Path]) -> None:
    (told,) = cautions(folders, "abc", threshold=0.5)
    assert told.severity == "warning"
    assert told.pointer == "/steps/0/threshold"
    assert "with 3 sources and threshold 0.5 (from 0.5 on)" in told.message
    assert cautions(folders, "abc", threshold=0.49) == []
    assert cautions(folders, "ab", threshold=0.6) == []
    assert cautions(folders, "a", threshold=5.0) == [], "one source has nobody to agree with"
    assert len(cautions(folders, "abc", threshold=[0.1, 0.9])) == 1, "a curve is told once"
    assert cautions(folders, "abc", threshold=0.5, agree=0) == [], "nothing is masked then"
