"""Sums of terms by a compiled loop are those of the eager code, to the last bit."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from merge.checkpoint.dtype import torch_dtype
from merge.kernels.reduce import piece_sums
from merge.running.blocks import Buffers, Inputs
from merge.running.fused import loops
from merge.running.fused.loops import Loops
from merge.running.fused.summing import summed
from merge.running.survey.terms import Given

GIVEN = [
    Given(based, sources, prepared, combined)
    for based, sources, prepared, combined in (
        (True, 3, False, False), (False, 2, False, False), (True, 1, True, False), (True, 2, True, True),
    )
]  # fmt: skip


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Loops:
    monkeypatch.setattr(loops, "LEAST_TOTAL", 0)
    return Loops(Inputs({}, Buffers(), torch.float32), Buffers(), 1 << 20, True)


def values_of(given: Given, entries: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(entries)
    values = [torch.randn(entries, generator=generator) * 0.02 for _ in range(given.inputs)]
    for place, value in enumerate(values[1:]):
        value[place::3] = values[0][place::3]
    return values


@pytest.mark.parametrize("entries", [1, 2, 63, 8192, 65_535])
@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_what_the_report_adds_up_is_the_same(given: Given, entries: int, made: Loops) -> None:
    values = values_of(given, entries)
    loop = made.summing(given, ("F32",) * given.inputs, given.terms)
    assert loop is not None, made.reasons
    terms = given.terms(values)
    wanted = [float(piece_sums(term, entries)[0]) for term in terms]
    assert loop.sums(values) == summed(terms) == wanted
    assert made.summing(given, ("F32",) * given.inputs, given.terms) is loop


@pytest.mark.parametrize("dtypes", [("BF16",) * 5, ("F16", "F32", "BF16", "F32", "F16")], ids=str)
def test_stored_entries_are_added_up_as_the_numbers_they_stand_for(
    dtypes: tuple[str, ...], made: Loops
) -> None:
    given = GIVEN[0]
    stored = [value.to(torch_dtype(name)) for value, name in zip(values_of(given, 5000), dtypes, strict=True)]
    loop = made.summing(given, dtypes, given.terms)
    assert loop is not None, made.reasons
    assert loop.sums(stored) == summed(given.terms([value.float() for value in stored]))


def test_what_is_not_finite_or_too_long_is_left_to_the_eager_code(made: Loops) -> None:
    given = GIVEN[0]
    loop = made.summing(given, ("F32",) * given.inputs, given.terms)
    assert loop is not None
    values = values_of(given, 100)
    values[1][7] = float("inf")
    assert loop.sums(values) is None
    assert loop.sums(values_of(given, 65_537)) is None
    assert loop.sums(values_of(given, 0)) is None


def test_terms_that_cannot_be_followed_have_no_loop(made: Loops) -> None:
    def sorts(values: Sequence[Tensor]) -> list[Tensor]:
        return [values[0].sort().values.double()]

    assert made.summing("sorted", ("F32",), sorts) is None
    assert made.reasons
