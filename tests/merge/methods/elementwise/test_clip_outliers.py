from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tests.merge.whole import merge_all, merge_one

Step = tuple[str, Mapping[str, Any]]
SUM: Step = ("task_arithmetic", {})


def clipped(base: torch.Tensor | None, sources: list[torch.Tensor], **settings: object) -> torch.Tensor:
    combine: Step = SUM if base is not None else ("linear", {})
    return merge_one([combine, ("clip_outliers", settings)], base, sources)


def test_worked_example() -> None:
    """A fifth of five entries is held to the second largest."""
    made = clipped(torch.zeros(5), [torch.tensor([1.0, -9.0, 2.0, 3.0, 0.0])], share=0.2)
    assert made.tolist() == [1.0, -3.0, 2.0, 3.0, 0.0]


def test_no_entry_goes_further_than_the_furthest_source() -> None:
    base = torch.zeros(4)
    deltas = [torch.tensor([1.0, 1.0, -2.0, 0.0]), torch.tensor([1.0, -3.0, -2.0, 0.5])]
    assert clipped(base, deltas, limit="sources").tolist() == [1.0, -2.0, -2.0, 0.5]


def test_what_is_not_clipped_keeps_its_bits() -> None:
    base, sources = torch.randn(1000) * 1e3, [torch.randn(1000) for _ in range(3)]
    plain = merge_one([SUM], base, [base + s for s in sources])
    made = clipped(base, [base + s for s in sources], share=0.01)
    assert int((made != plain).sum()) == 10


def test_share_zero_and_small_tensors_are_left_alone() -> None:
    base, source = torch.randn(500), torch.randn(500)
    for settings in ({"share": 0.0}, {"share": 0.001}):
        assert torch.equal(clipped(base, [source], **settings), merge_one([SUM], base, [source]))
    assert torch.equal(clipped(base, [base, base]), base)


def test_without_a_base_the_entries_themselves_are_clipped() -> None:
    made = clipped(None, [torch.tensor([1.0, -9.0, 2.0, 3.0, 0.0])], share=0.2)
    assert made.tolist() == [1.0, -3.0, 2.0, 3.0, 0.0]


def test_one_source_is_within_the_sources() -> None:
    base, source = torch.randn(90), torch.randn(90)
    for count in (1, 2, 8):
        mean: list[Step] = [("task_arithmetic", {"normalize": True}), ("clip_outliers", {"limit": "sources"})]
        made = merge_one(mean, base, [source] * count)
        assert torch.allclose(made, source, atol=1e-6)


def test_global_scope_ranks_over_the_whole_model() -> None:
    tensors = {
        "a": (torch.zeros(5), [torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0])]),
        "b": (torch.zeros(5), [torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0])]),
    }
    made = merge_all([SUM, ("clip_outliers", {"share": 0.2, "scope": "global"})], tensors)
    assert made["a"].tolist() == [7.0, 7.0, 7.0, 6.0, 5.0]
    assert made["b"].tolist() == [1.0, 1.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_agrees_with_an_independent_float64_reference(count: int) -> None:
    generator = torch.Generator().manual_seed(6)
    base = torch.randn(13, 29, generator=generator)
    sources = [base + 0.1 * torch.randn(13, 29, generator=generator) for _ in range(count)]
    change = np.sum([(source.double() - base.double()).numpy() for source in sources], axis=0)
    edge = np.sort(np.abs(change).reshape(-1))[::-1][int(0.05 * change.size)]
    wanted = base.double().numpy() + np.clip(change, -edge, edge)
    assert np.abs(clipped(base, sources, share=0.05).numpy() - wanted).max() < 1e-6
