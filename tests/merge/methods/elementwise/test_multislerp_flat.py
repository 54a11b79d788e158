import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.merge.methods.elementwise import sphere
from tests.merge.methods.elementwise.test_karcher import spread
from tests.merge.whole import merge_one

A, B = torch.eye(2).unbind()


def flat(
    sources: list[Tensor], weights: list[float] | None = None, base: Tensor | None = None, **settings: bool
) -> Tensor:
    return merge_one([("multislerp_flat", settings)], base, sources, weights=weights)


def test_it_is_the_weighted_sum_of_the_directions_brought_to_length() -> None:
    merged = flat([A, B], [0.25, 0.75])
    assert torch.allclose(merged, torch.tensor([0.3162, 0.9487]), atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_agrees_with_whole_vectors_in_float64(count: int, based: bool, normalize: bool) -> None:
    base = torch.randn(13, 17, generator=torch.Generator().manual_seed(1)) if based else None
    start = torch.zeros(13, 17) if base is None else base
    sources = [start + delta for delta in spread(count)]
    weights = [2.0 / (1 + place) for place in range(count)]
    vectors = [(source.double() - start.double()).numpy() for source in sources]
    direction = sphere.unit(sum(w * sphere.unit(v) for w, v in zip(weights, vectors, strict=True)))
    length = sphere.mean_length(vectors, weights) * (1 if normalize else sum(weights))
    wanted = start.double().numpy() + length * direction
    merged = flat(sources, weights, base, normalize=normalize)
    assert np.abs(merged.numpy() - wanted).max() < 3e-6 * max(1, sum(weights))


def test_equal_weights_on_two_sources_are_half_way_on_the_arc() -> None:
    assert torch.allclose(flat([A, B]), torch.tensor([math.sqrt(0.5), math.sqrt(0.5)]))


def test_it_leaves_the_arc_where_weights_differ() -> None:
    arc = merge_one([("multislerp", {})], None, [A, B], weights=[0.25, 0.75])
    assert not torch.allclose(flat([A, B], [0.25, 0.75]), arc, atol=0.01)


def test_opposite_tensors_and_zeros_are_averaged_as_they_are() -> None:
    assert torch.allclose(flat([3 * A, -A]), A)
    assert torch.allclose(flat([torch.zeros(2), 2 * A]), A)
