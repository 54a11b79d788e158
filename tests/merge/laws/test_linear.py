"""Methods that say they are linear are: what unit vectors show of them holds for any tensors."""

import pytest
import torch

from merge.contract.method import Kind, registered
from merge.methods import load
from tests.merge.whole import merge_one

load()
LINEAR = [name for name, method in registered().items() if method.linear]


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_method_is_a_sum_with_factors_that_unit_vectors_show(name: str) -> None:
    method = registered()[name]
    assert method.kind is Kind.COMBINE and method.granularity == "element"
    count = 1 if method.needs.sources[1] == 1 else 3
    weights = [0.5, -0.25, 2.0][:count]
    units = list(torch.eye(count + 1).double())
    factors = merge_one([(name, {})], units[0], units[1:], weights=weights).tolist()
    tensors = [torch.randn(40).double() * 10.0**power for power in range(count + 1)]
    merged = merge_one([(name, {})], tensors[0], tensors[1:], weights=weights)
    wanted = torch.stack([tensor * factor for tensor, factor in zip(tensors, factors, strict=True)]).sum(0)
    assert torch.allclose(merged, wanted, atol=1e-9)


def test_the_plain_averages_are_among_them() -> None:
    assert {"linear", "task_arithmetic", "passthrough"} <= set(LINEAR)
