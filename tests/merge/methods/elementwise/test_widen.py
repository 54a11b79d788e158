import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.merge.whole import merge_one

Array = NDArray[np.float64]
BASE = torch.eye(2)
FIRST, SECOND = torch.tensor([[2, 0], [0, 1.1]]), torch.tensor([[1, 0.6], [0, 0.8]])


def widen(base: torch.Tensor, sources: list[torch.Tensor], **settings: object) -> torch.Tensor:
    return merge_one([("widen", settings)], base, sources)


def test_worked_example_of_the_card_with_equal_columns_by_position() -> None:
    made = widen(BASE, [FIRST, SECOND], equal="position")
    assert torch.allclose(made, torch.tensor([[1.75, 0.6], [0.0, 0.868877]]), atol=1e-6)


def test_equal_columns_share_their_mean_rank() -> None:
    """dm ranks: (1/2, 0) and (1/4, 1/4); dd ranks: (1/4, 1/4) and (0, 1/2); only 1/2 is above the mean."""
    softened = math.exp(0.25) / (math.exp(0.5) + math.exp(0.25))
    first = ((1 + math.exp(0.25) / (math.exp(0.25) + 1)) / 2, (1 / (1 + math.exp(0.25)) + softened) / 2)
    second = ((softened + 1 / (1 + math.exp(0.25))) / 2, (math.exp(0.25) / (1 + math.exp(0.25)) + 1) / 2)
    wanted = torch.tensor([[1 + first[0], 3 * second[1]], [0.0, 5 + 0.5 * first[1] - second[1]]])
    longer, turned = torch.tensor([[2, 0], [0, 5.5]]), torch.tensor([[1.0, 3], [0, 4]])
    assert torch.allclose(widen(torch.diag(torch.tensor([1.0, 5])), [longer, turned]), wanted, atol=1e-6)
    assert second[0] < 1, "columns that did not change count for nothing"


def test_one_source_is_taken_whole() -> None:
    base, source = torch.randn(6, 9), torch.randn(6, 9)
    assert torch.allclose(widen(base, [source]), source, atol=1e-6)
    assert torch.allclose(widen(base[0], [source[0]]), source[0], atol=1e-6)


def test_equal_sources_overshoot_as_published_unless_normalised() -> None:
    made = widen(BASE, [FIRST, FIRST], equal="position")
    assert torch.allclose(made, torch.tensor([[2.5, 0], [0, 1.15]])), "1.5 times the change"
    for count in (2, 8):
        even = widen(BASE, [FIRST] * count, normalize=True, calibration=1.0)
        assert torch.allclose(even, FIRST, atol=1e-6)


def test_columns_of_zeros_divide_by_nothing() -> None:
    base, source = torch.zeros(3, 4), torch.zeros(3, 4)
    source[:, 1] = 1.0
    base[:, 2] = 2.0
    made = widen(base, [source, base])
    assert bool(torch.isfinite(made).all())
    assert float(made[0, 1]) > 0.5
    assert torch.equal(widen(base, [base, base]), base)


def test_embeddings_are_weighted_by_token_and_turned_weights_by_input() -> None:
    base, sources = torch.randn(7, 3), [torch.randn(7, 3) for _ in range(2)]
    across = widen(base.t().contiguous(), [s.t().contiguous() for s in sources]).t()
    for how in ({"role": "embed"}, {"turned": True}):
        assert torch.allclose(merge_one([("widen", {})], base, sources, **how), across, atol=1e-6)


@pytest.mark.parametrize(
    ("role", "turned", "shape"),
    [("embed", False, (3000, 70)), ("linear", True, (3000, 70)), ("expert", False, (5, 300, 200))],
    ids=["embedding", "turned", "experts"],
)
def test_blocks_of_large_ones_find_their_own_shares(role: str, turned: bool, shape: tuple[int, ...]) -> None:
    base, sources = torch.randn(shape), [torch.randn(shape) for _ in range(2)]
    steps: list[tuple[str, dict[str, object]]] = [("widen", {})]
    cuts = [
        merge_one(steps, base, sources, role=role, turned=turned, block=block) for block in (1 << 16, 1 << 20)
    ]
    assert torch.equal(*cuts)


def test_stacked_experts_are_matrices_of_their_own_and_kernels_one() -> None:
    base, sources = torch.randn(3, 5, 4), [torch.randn(3, 5, 4) for _ in range(2)]
    made = merge_one([("widen", {})], base, sources, role="expert")
    single = [widen(base[e], [source[e] for source in sources]) for e in range(3)]
    assert torch.allclose(made, torch.stack(single), atol=1e-6)
    across = [tensor.mT.contiguous() for tensor in (base, *sources)]
    turned = merge_one([("widen", {})], across[0], across[1:], role="expert", turned=True)
    assert torch.equal(turned.mT, made)
    kernel = widen(base, sources)
    flat = widen(base.view(3, 20), [source.view(3, 20) for source in sources])
    assert torch.allclose(kernel, flat.view(3, 5, 4), atol=1e-6)


def test_float64_inputs_are_left_alone() -> None:
    base, source = torch.randn(7, 3).double(), torch.randn(7, 3).double()
    before = source.clone()
    merge_one([("trim", {"density": 1.0}), ("widen", {})], base, [source])
    widen(torch.zeros_like(base), [source])
    assert torch.equal(source, before)


def test_vectors_can_be_averaged() -> None:
    base, sources = torch.randn(9), [torch.randn(9) for _ in range(3)]
    assert torch.allclose(widen(base, sources, vectors="mean"), torch.stack(sources).mean(0), atol=1e-6)


def softmax(scores: list[Array]) -> list[Array]:
    powers = [np.exp(score - np.max(scores, axis=0)) for score in scores]
    return [power / np.sum(powers, axis=0) for power in powers]


def reference(base: Array, sources: list[Array], above: float, calibration: float) -> Array:
    """From the card, with unit columns written out and ranks from a full sort; no two columns are equal."""

    def shares(scores: list[Array], means: list[float]) -> list[Array]:
        soft = softmax(scores)
        return [np.where(s > above * m, calibration, p) for s, m, p in zip(scores, means, soft, strict=True)]

    if base.ndim == 1:
        sizes = [np.abs(source - base) for source in sources]
        chosen = shares(sizes, [float(size.mean()) for size in sizes])
    else:
        length = np.linalg.norm(base, axis=0)
        gaps = [np.abs(np.linalg.norm(source, axis=0) - length) for source in sources]
        turns = [
            1 - (source / np.linalg.norm(source, axis=0) * base / length).sum(axis=0) for source in sources
        ]
        both = []
        for values in (gaps, turns):
            ranks = [np.argsort(np.argsort(value)) / value.size for value in values]
            both.append(shares(ranks, [float(rank.mean()) for rank in ranks]))
        chosen = [(one + other) / 2 for one, other in zip(*both, strict=True)]
    return base + sum(c * (source - base) for c, source in zip(chosen, sources, strict=True))


@pytest.mark.parametrize("shape", [(600, 37), (37,), (5, 300)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 8])
def test_agrees_with_an_independent_float64_reference(count: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(count)
    base = torch.randn(shape, generator=generator)
    sources = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count)]
    merged = widen(base, sources, above=1.2, calibration=0.8)
    wanted = reference(base.double().numpy(), [s.double().numpy() for s in sources], 1.2, 0.8)
    assert np.abs(merged.numpy() - wanted).max() < 1e-5
