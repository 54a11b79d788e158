import pytest
import torch

from merge.errors import SettingInvalid
from tests.merge.whole import merge_one


def expo(base: torch.Tensor, source: torch.Tensor, weight: float = 1.0, **settings: object) -> torch.Tensor:
    return merge_one([("expo", settings)], base, [source], weights=[weight])


def test_worked_example() -> None:
    """From 1 to 3 and half as far again."""
    assert expo(torch.tensor([1.0, 0.0]), torch.tensor([3.0, -2.0])).tolist() == [4.0, -3.0]


def test_alpha_zero_gives_the_source_to_the_bit() -> None:
    base, source = torch.randn(500) * 1e-3, torch.randn(500)
    assert torch.equal(expo(base, source, alpha=0.0), source)


def test_minus_one_gives_the_base_and_no_change_gives_it_to_the_bit() -> None:
    base, source = torch.randn(500), torch.randn(500)
    assert torch.allclose(expo(base, source, alpha=-1.0), base, atol=1e-6)
    assert torch.equal(expo(base, base, alpha=3.7), base)


def test_it_is_task_arithmetic_beyond_one() -> None:
    base, source = torch.randn(500), torch.randn(500)
    plain = merge_one([("task_arithmetic", {"scale": 1.3})], base, [source])
    assert torch.allclose(expo(base, source, alpha=0.3), plain, atol=1e-6)


def test_the_weight_multiplies_the_change() -> None:
    base, source = torch.zeros(1), torch.ones(1)
    assert float(expo(base, source, 0.5, alpha=0.5)) == pytest.approx(0.75)


def test_it_goes_forward_from_the_base_only() -> None:
    with pytest.raises(SettingInvalid, match="alpha"):
        expo(torch.zeros(1), torch.ones(1), alpha=-1.5)


def test_agrees_with_float64() -> None:
    base, source = torch.randn(13, 29), torch.randn(13, 29)
    wanted = base.double() + 1.35 * 0.8 * (source.double() - base.double())
    assert (expo(base, source, 0.8, alpha=0.35).double() - wanted).abs().max() < 1e-6
