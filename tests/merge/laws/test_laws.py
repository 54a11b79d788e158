"""Laws that every tensor method obeys, found in the registry; one that may not says so in ``breaks``."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge.contract.method import Method
from tests.merge.every import METHODS, count_of, moved, steps_of, values_of
from tests.merge.whole import merge_one

EXAMPLES = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def under(law: str) -> pytest.MarkDecorator:
    """The methods that promise this law."""
    kept = [method for method in METHODS if law not in method.breaks]
    return pytest.mark.parametrize("method", kept, ids=[method.name for method in kept])


def exact(seed: int, shape: tuple[int, ...], count: int) -> tuple[Tensor, list[Tensor]]:
    """A base and sources of small multiples of 1/8: sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randint(-16, 17, shape, generator=generator) / 8 for _ in range(count + 1)]
    return draw[0], [draw[0] + delta for delta in draw[1:]]


SHAPES = st.sampled_from([(1,), (7,), (4, 6), (3, 2, 5), (1, 9), ()])
SEEDS = st.integers(0, 1000)


@under("shape")
@EXAMPLES
@given(data=st.data(), shape=SHAPES, seed=SEEDS)
def test_output_has_the_shape_and_is_finite(
    method: Method, data: Any, shape: tuple[int, ...], seed: int
) -> None:
    base, sources = exact(seed, shape, count_of(method))
    merged = merge_one(steps_of(method, data.draw(values_of(method))), base, sources)
    assert merged.shape == base.shape
    assert bool(torch.isfinite(merged).all())


@under("determinism")
@EXAMPLES
@given(data=st.data(), seed=SEEDS)
def test_same_input_and_seed_give_the_same_bytes(method: Method, data: Any, seed: int) -> None:
    base, sources = exact(seed, (5, 8), count_of(method))
    steps = steps_of(method, data.draw(values_of(method)))
    assert torch.equal(merge_one(steps, base, sources, seed=seed), merge_one(steps, base, sources, seed=seed))


@under("inputs_untouched")
@EXAMPLES
@given(data=st.data(), seed=SEEDS)
def test_inputs_are_not_written_to(method: Method, data: Any, seed: int) -> None:
    base, sources = exact(seed, (5, 8), count_of(method))
    before = [tensor.clone() for tensor in (base, *sources)]
    merge_one(steps_of(method, data.draw(values_of(method))), base, sources)
    assert all(torch.equal(a, b) for a, b in zip(before, (base, *sources), strict=True))


@under("equal_to_base")
@EXAMPLES
@given(shape=SHAPES, seed=SEEDS)
def test_sources_equal_to_the_base_give_the_base(method: Method, shape: tuple[int, ...], seed: int) -> None:
    base, _ = exact(seed, shape, 1)
    merged = merge_one(steps_of(method, {}), base, [base.clone() for _ in range(count_of(method))])
    assert torch.allclose(merged, base, atol=1e-6)


@under("order")
@EXAMPLES
@given(data=st.data(), seed=SEEDS)
def test_order_of_sources_does_not_matter(method: Method, data: Any, seed: int) -> None:
    count = count_of(method)
    base, sources = exact(seed, (5, 8), count)
    ids, weights = [f"s{place}" for place in range(count)], [1.0, 0.5, 2.0][:count]
    steps = steps_of(method, data.draw(values_of(method)))
    forth = merge_one(steps, base, sources, weights=weights, models=ids)
    back = merge_one(steps, base, sources[::-1], weights=weights[::-1], models=ids[::-1])
    assert torch.allclose(forth, back, atol=1e-4)


@under("zero_delta")
@EXAMPLES
@given(data=st.data())
def test_nothing_but_zeros_does_no_harm(method: Method, data: Any) -> None:
    zeros = torch.zeros(6, 4)
    sources = [zeros.clone() for _ in range(count_of(method))]
    assert torch.equal(merge_one(steps_of(method, data.draw(values_of(method))), zeros, sources), zeros)


@under("parts")
@pytest.mark.parametrize("shape", [(150_001,), (301, 499)], ids=str)
def test_blocks_and_threads_do_not_change_a_bit(method: Method, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(shape, generator=generator)
    sources = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count_of(method))]
    for values in ({}, moved(method)):
        steps = steps_of(method, values)
        cuts = [
            merge_one(steps, base, sources, block=b, threads=t)
            for b, t in ((1 << 16, 1), (1 << 17, 2), (1 << 20, 4))
        ]
        assert all(torch.equal(cuts[0], other) for other in cuts[1:])
