import numpy as np
import pytest
import torch

from tests.merge.whole import merge_one

FIRST, SECOND = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 3.0, -0.5])


def emr(deltas: list[torch.Tensor], **settings: object) -> torch.Tensor:
    return merge_one([("emr", settings)], torch.zeros_like(deltas[0]), deltas)


def test_worked_example_of_the_card() -> None:
    assert emr([FIRST, SECOND], on_tie="minus").tolist() == [2.0, 3.0, -0.5]


def test_an_even_vote_leaves_the_base_unless_told_otherwise() -> None:
    assert emr([FIRST, SECOND]).tolist() == [2.0, 3.0, 0.0]
    assert emr([-FIRST, -SECOND]).tolist() == [-2.0, -3.0, 0.0], "both directions are treated alike"


def test_masked_and_rescaled_it_gives_every_experts_mean_size() -> None:
    """The card's factors 1.75 and 0.818: of what a bundle keeps, this is the shared part."""
    unified = emr([FIRST, SECOND], on_tie="minus")
    factors = [float(d.abs().sum() / (unified * (d * unified > 0)).abs().sum()) for d in (FIRST, SECOND)]
    assert factors == pytest.approx([1.75, 9 / 11])


def test_it_is_ties_without_trim_and_with_the_largest() -> None:
    base, sources = torch.randn(500), [torch.randn(500) for _ in range(5)]
    weights = [1.0, 0.5, 2.0, 1.0, 0.25]
    ties = [("ties", {"density": 1.0, "aggregate": "max", "scale": 0.4})]
    made = merge_one([("emr", {"scale": 0.4})], base, sources, weights=weights)
    assert torch.equal(made, merge_one(ties, base, sources, weights=weights))


def test_one_source_and_copies_of_it_give_the_source() -> None:
    base, source = torch.zeros(50), torch.randn(50)
    for count in (1, 2, 8):
        assert torch.equal(merge_one([("emr", {})], base, [source] * count), source)


def test_zero_changes_and_a_zero_source_do_no_harm() -> None:
    base, delta = torch.randn(50), torch.randn(50)
    assert torch.equal(merge_one([("emr", {"on_tie": "minus"})], base, [base] * 3), base)
    assert torch.allclose(merge_one([("emr", {})], base, [base, base + delta]), base + delta)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_agrees_with_an_independent_float64_reference(count: int) -> None:
    generator = torch.Generator().manual_seed(8)
    base = torch.randn(13, 29, generator=generator)
    sources = [base + 0.1 * torch.randn(13, 29, generator=generator) for _ in range(count)]
    merged = merge_one([("emr", {"scale": 0.7})], base, sources)
    deltas = np.stack([(source.double() - base.double()).numpy() for source in sources])
    elected = np.sign(deltas.sum(axis=0))
    unified = elected * np.where(deltas * elected > 0, np.abs(deltas), 0).max(axis=0)
    assert np.abs(merged.numpy() - (base.double().numpy() + 0.7 * unified)).max() < 1e-6
