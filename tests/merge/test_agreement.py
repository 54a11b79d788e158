"""Where mergekit and we mean the same, the numbers are the same; see ``agreement.py``."""

import json

import pytest
import torch

from bench.agreement import CASES as WHOLE
from merge.mergekit.methods import METHODS
from merge.mergekit.translate import translate
from merge.plan import check_recipe
from tests.merge.agreement import CASES, RECORDED, inputs
from tests.merge.whole import merge_one

OUTPUTS = json.loads(RECORDED.read_text(encoding="utf-8"))["outputs"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ours_is_what_mergekit_recorded(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    base, sources = ([torch.tensor(v, dtype=dtype).view(case.shape) for v in vs] for vs in _split(name))
    start = base[0] if case.based else None
    merged = merge_one(case.steps, start, sources, weights=case.weights)
    wanted = torch.tensor(OUTPUTS[name], dtype=torch.float64).view(case.shape)
    assert float((merged.double() - wanted).abs().max()) < (1e-8 if dtype is torch.float64 else 1e-6)


def _split(name: str) -> tuple[list[list[float]], list[list[float]]]:
    base, sources = inputs(CASES[name])
    return [base], sources


def test_every_deterministic_method_of_mergekit_is_compared_on_whole_models() -> None:
    compared = {case.method for case in WHOLE.values()}
    assert METHODS.keys() - compared == {"della", "della_linear"}


@pytest.mark.parametrize("name", WHOLE)
def test_the_yaml_of_every_comparison_is_understood(name: str) -> None:
    assert not check_recipe(translate(WHOLE[name].document("float64")).recipe)


def test_the_recorded_cases_are_those_that_are_asked() -> None:
    assert OUTPUTS.keys() == CASES.keys(), "run bench/record_mergekit.py where mergekit is installed"
