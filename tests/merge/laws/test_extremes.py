"""Every method on numbers at the edge: nothing changed, all the same, denormal, huge, few different ones."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge.contract.method import Method
from tests.merge.every import METHODS, count_of, steps_of, values_of
from tests.merge.whole import merge_one

EVERY = pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
EXAMPLES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
SHAPES = st.sampled_from([(), (1,), (7,), (1, 9), (9, 1), (4, 6), (3, 2, 2, 2)])
SIZES = {"eighths": 1 / 8, "denormal": 2.0**-149, "small": 1e-20, "huge": 1e30}
CHANGES = ("all", "none", "first_none", "same", "equal_magnitudes", "single_entry")


def content(
    shape: tuple[int, ...], size: str, change: str, count: int, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """A base and sources of small whole numbers times the size."""
    generator = torch.Generator().manual_seed(seed)
    base, *deltas = (torch.randint(-9, 10, shape, generator=generator).float() for _ in range(count + 1))
    if change == "none":
        deltas = [torch.zeros(shape) for _ in deltas]
    elif change == "first_none":
        deltas[0] = torch.zeros(shape)
    elif change == "same":
        deltas = [deltas[0].clone() for _ in deltas]
    elif change == "equal_magnitudes":
        deltas = [torch.where(delta > 0, 3.0, -3.0) for delta in deltas]
    elif change == "single_entry":
        deltas = [
            torch.zeros(shape).view(-1).index_fill(0, torch.tensor([0]), 5.0).view(shape) for _ in deltas
        ]
    return base * SIZES[size], [(base + delta) * SIZES[size] for delta in deltas]


@st.composite
def cases(draw: Any, method: Method) -> tuple[Tensor, list[Tensor], list[float]]:
    """Inputs and weights; as many sources as the method may take, up to eight."""
    least, most = method.needs.sources
    count = draw(st.sampled_from(sorted({least, count_of(method), min(8, most or 8)})))
    size, change = draw(st.sampled_from(sorted(SIZES))), draw(st.sampled_from(CHANGES))
    base, sources = content(draw(SHAPES), size, change, count, draw(st.integers(0, 99)))
    wide = torch.float64 if draw(st.booleans()) else torch.float32
    weights = draw(st.sampled_from([[1.0] * count, [1.0 + place / 2 for place in range(count)]]))
    return base.to(wide), [source.to(wide) for source in sources], weights


@EVERY
@EXAMPLES
@given(data=st.data())
def test_the_result_is_finite_and_of_the_same_shape(method: Method, data: Any) -> None:
    base, sources, weights = data.draw(cases(method))
    steps = steps_of(method, data.draw(values_of(method)))
    merged = merge_one(steps, base, sources, weights=weights)
    assert merged.shape == base.shape
    assert merged.dtype == base.dtype
    assert bool(torch.isfinite(merged).all())


@EVERY
@EXAMPLES
@given(data=st.data(), change=st.sampled_from(CHANGES), shape=SHAPES, seed=st.integers(0, 99))
def test_float32_and_float64_arithmetic_mean_the_same(
    method: Method, data: Any, change: str, shape: tuple[int, ...], seed: int
) -> None:
    base, sources = content(shape, "eighths", change, count_of(method), seed)
    steps = steps_of(method, data.draw(values_of(method)))
    plain = merge_one(steps, base, sources)
    wide = merge_one(steps, base.double(), [source.double() for source in sources])
    assert torch.allclose(plain.double(), wide, rtol=1e-5, atol=1e-5)
