import pytest
import torch

from merge.kernels.curves import beyond, decay, peak, power, tanh


def test_decay_is_the_exponential_to_twelve_digits() -> None:
    for most in (0.3, 1.0, 8.0, 60.0):
        values = torch.linspace(0, most, 4001, dtype=torch.float64)
        found, wanted = decay(values, most), torch.exp(-values)
        assert float(((found - wanted) / wanted).abs().max()) < 1e-10
        assert bool((found.diff() <= 0).all())
    assert decay(torch.zeros(3, dtype=torch.float64), 0.0).tolist() == [1.0] * 3


def test_power_is_the_exponential_to_nine_digits() -> None:
    for most in (0.1, 1.0, 3.0, 16.0):
        values = torch.linspace(-most, most, 4001, dtype=torch.float64)
        assert float((power(values, most) / torch.exp(values) - 1).abs().max()) < 3e-11 * (1 + most)


def test_what_goes_beyond_the_linear_is_exact_relative_to_its_value() -> None:
    for most in (1 / 16, 1.0):
        values = torch.cat(
            [torch.logspace(-100, 0, 4000, dtype=torch.float64) * most, torch.zeros(1).double()]
        )
        values = torch.cat([values, -values])
        plain = torch.expm1(values) - values
        wanted = torch.where(values.abs() < 1e-4, values**2 / 2 + values**3 / 6 + values**4 / 24, plain)
        found = beyond(values, most)
        assert float(((found - wanted) / torch.where(wanted == 0, 1, wanted)).abs().max()) < 1e-9


def test_tanh_is_exact_relative_to_its_value_from_the_smallest_to_the_largest() -> None:
    values = torch.cat(
        [torch.logspace(-300, 300, 2000, dtype=torch.float64), torch.linspace(0.1, 30, 3000).double()]
    )
    values = torch.cat([values, -values])
    wanted = torch.tanh(values)
    assert float(((tanh(values) - wanted) / wanted).abs().max()) < 1e-12
    assert tanh(torch.zeros(2, dtype=torch.float64)).tolist() == [0.0, 0.0]


def test_in_single_precision_they_are_exact_to_a_few_units_in_the_last_place() -> None:
    for most in (0.3, 3.0, 8.0, 60.0):
        values = torch.linspace(0, most, 4001)
        wanted = torch.exp(-values.double())
        found = decay(values, most)
        assert float(((found - wanted) / wanted).abs().max()) < 4e-7 * (1 + most)
        assert bool((found >= 0).all())
    values = torch.cat([torch.logspace(-30, 30, 2000), torch.linspace(0.1, 12, 3000)])
    values = torch.cat([values, -values])
    wanted = torch.tanh(values.double())
    assert float(((tanh(values) - wanted) / wanted).abs().max()) < 2e-6


def test_few_powers_do_where_all_is_small() -> None:
    for dtype, least, close in ((torch.float64, -300, 2e-9), (torch.float32, -30, 3e-7)):
        values = torch.cat([torch.logspace(least, -1, 1000, dtype=dtype), torch.tensor([0.125], dtype=dtype)])
        values = torch.cat([values, -values])
        wanted = torch.tanh(values.double())
        assert float(((tanh(values, 0.125) - wanted) / wanted).abs().max()) < close


def test_a_peak_is_the_exponential_below_one() -> None:
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 4e-7)):
        for steepness in (1, 2, 3, 7, 24, 60):
            values = torch.linspace(0, 1, 20_001, dtype=dtype)
            found, wanted = peak(values, steepness), torch.exp(steepness * (values.double() - 1))
            assert float((found / wanted - 1).abs().max()) < close * (1 + steepness)
            assert bool((found.diff() >= 0).all())
            assert bool((found >= 0).all())


def test_a_peak_of_many_sources_is_nothing_where_a_float_ends() -> None:
    assert peak(torch.tensor([0.0, 1.0]), 200).tolist() == [0.0, pytest.approx(1.0, rel=1e-4)]


def test_the_smaller_all_is_the_fewer_powers_do() -> None:
    values = torch.tensor([2.0**-11, -(2.0**-12), 1e-20, 0.0])
    assert tanh(values, 2.0**-11).tolist() == values.tolist()
    for most in (2.0**-11, 2.0**-6, 2.0**-3):
        values = torch.linspace(most / 1000, most, 1000)
        assert float((tanh(values, most) / torch.tanh(values.double()) - 1).abs().max()) < 3e-7


def test_inputs_are_left_alone() -> None:
    values = torch.linspace(0, 5, 100, dtype=torch.float64)
    before = values.clone()
    decay(values, 5.0)
    power(values, 5.0)
    beyond(values, 1.0)
    tanh(values)
    tanh(values, 5.0).mul_(2)
    tanh(values.float(), 0.0001).mul_(2)
    peak(values, 2)
    assert torch.equal(values, before)
