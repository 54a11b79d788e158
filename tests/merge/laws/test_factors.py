"""Laws of every method that merges the factors of adapters."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merge.contract.factors import Factors
from merge.contract.method import Kind, Method
from tests.merge.every import ON_FACTORS, count_of, values_of
from tests.merge.methods.adapters.made import drawn, factors, nothing, product

EVERY = pytest.mark.parametrize("method", ON_FACTORS, ids=[method.name for method in ON_FACTORS])
EXAMPLES = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
SHAPES = st.sampled_from([(1, 1), (7, 1), (1, 7), (4, 6), (12, 5)])
SEEDS = st.integers(0, 1000)
SIZES = st.sampled_from([1.0, 2.0**-149, 1e-20, 1e30])
"""Factors as they are, denormal in float32, small and huge."""


@EVERY
@EXAMPLES
@given(data=st.data(), shape=SHAPES, seed=SEEDS, count=st.sampled_from([1, 2, 3, 8]), size=SIZES)
def test_the_change_has_the_shape_and_is_finite(
    method: Method, data: Any, shape: tuple[int, int], seed: int, count: int, size: float
) -> None:
    parts = [Factors(each.left * size, each.right) for each in drawn(count, shape, 3, seed)]
    before = [(each.left.clone(), each.right.clone()) for each in parts]
    found = factors(method.name, parts, **data.draw(values_of(method)))
    assert (found.left.shape[0], found.right.shape[1]) == shape
    assert found.left.shape[1] == found.right.shape[0]
    assert found.left.dtype == found.right.dtype == torch.float64
    assert bool(torch.isfinite(product(found)).all())
    for part, (left, right) in zip(parts, before, strict=True):
        assert torch.equal(part.left, left) and torch.equal(part.right, right), "inputs are untouched"


@EVERY
@EXAMPLES
@given(data=st.data(), seed=SEEDS)
def test_the_same_factors_give_the_same_bytes(method: Method, data: Any, seed: int) -> None:
    values = data.draw(values_of(method))
    first, second = (factors(method.name, drawn(3, (9, 7), 3, seed), **values) for _ in range(2))
    assert torch.equal(first.left, second.left) and torch.equal(first.right, second.right)


@EVERY
@EXAMPLES
@given(data=st.data(), seed=SEEDS)
def test_order_of_sources_does_not_matter(method: Method, data: Any, seed: int) -> None:
    values, parts = data.draw(values_of(method)), drawn(3, (9, 7), 3, seed)
    forth = factors(method.name, parts, [1.0, 0.5, 2.0], **values)
    back = factors(method.name, parts[::-1], [2.0, 0.5, 1.0], **values)
    assert torch.allclose(product(forth), product(back), atol=1e-8)


@EVERY
@EXAMPLES
@given(data=st.data())
def test_nothing_changed_gives_nothing(method: Method, data: Any) -> None:
    values, (part,) = data.draw(values_of(method)), drawn(1, (6, 4), 2)
    zero = Factors(part.left * 0, part.right * 0)
    for parts in ([nothing(part)] * 3, [zero] * 3, [nothing(part), zero]):
        assert not bool(product(factors(method.name, parts, **values)).any())


@EVERY
def test_is_a_combine_with_a_base_that_takes_whole_rows(method: Method) -> None:
    assert method.kind is Kind.COMBINE and method.granularity == "row"
    assert method.needs.base is True and count_of(method) == 3
    assert not method.breaks
