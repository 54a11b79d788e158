import numpy as np
import pytest
import torch
from torch import Tensor

from tests.merge.whole import merge_one


def nearswap(base: Tensor, source: Tensor, t: float) -> Tensor:
    return merge_one([("nearswap", {"t": t})], base, [source])


def test_what_is_near_is_taken_over_and_the_rest_moves_by_t() -> None:
    base, source = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([1.25, 3.0, -3.0, 1.0])
    assert nearswap(base, source, 0.5).tolist() == [1.25, 1.5, 0.5, 1.0]


def test_t_zero_is_the_base_and_a_large_t_the_source() -> None:
    base, source = torch.randn(40), torch.randn(40)
    assert torch.equal(nearswap(base, source, 0.0), base)
    assert torch.allclose(nearswap(base, source, 100.0), source, atol=1e-6)


@pytest.mark.parametrize("t", [1e-3, 0.2])
def test_agrees_with_the_share_of_every_entrys_way_in_float64(t: float) -> None:
    base, source = torch.randn(31, 17), torch.randn(31, 17)
    a, b = base.double().numpy(), source.double().numpy()
    share = np.clip(t / np.abs(a - b), 0, 1)
    wanted = share * b + (1 - share) * a
    assert np.abs(nearswap(base, source, t).numpy() - wanted).max() < 1e-6
