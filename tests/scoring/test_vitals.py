"""Signs of life: right for a model that knows nothing, and enough to tell a broken merge from a sound one."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scoring.check import check_model
from scoring.check_report import Vitals
from scoring.model import load
from scoring.vitals import compare, repetition, vitals_of
from tests import tiny

TEXTS = ("The quick brown fox jumps over the lazy dog.", "def add(a, b):\n    return a + b\n")
SOUND = {"a": Vitals(1.0, 0.5, 0.2), "b": Vitals(1.2, 0.4, 0.1)}


def codes(result: Vitals, margin: float | None = 0.25) -> list[tuple[str, str]]:
    return [(each.severity, each.code) for each in compare(result, SOUND, margin)]


def test_a_model_that_knows_nothing_is_as_undecided_as_can_be(edit: Callable[..., Path]) -> None:
    folder = edit(lambda tensors: tensors["lm_head.weight"].zero_())
    found = vitals_of(load(folder), TEXTS)
    assert found is not None
    assert found.bits_per_byte == pytest.approx(math.log2(tiny.VOCAB), rel=1e-4)
    assert found.entropy == pytest.approx(1.0, rel=1e-4)


def test_loss_and_entropy_are_those_of_a_plain_loop(model: Path) -> None:
    loaded = load(model)
    nats = entropy = tokens = 0.0
    for text in TEXTS:
        ids = torch.tensor([[256, *loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]])  # type: ignore[misc]
        with torch.no_grad():
            logs = loaded.model(ids).logits[0, :-1].double().log_softmax(dim=1)
        nats -= float(logs.gather(1, ids[0, 1:, None]).sum())
        entropy -= float((logs.exp() * logs).sum())
        tokens += len(logs)
    found = vitals_of(loaded, TEXTS, writes=False)
    assert found is not None and found.repetition is None
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / sum(len(t) for t in TEXTS), rel=1e-5)
    assert found.entropy == pytest.approx(entropy / tokens / math.log(tiny.VOCAB), rel=1e-5)


def test_repetition_counts_runs_that_were_there_before() -> None:
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
    assert repetition([1, 2]) == 0.0


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Vitals(1.1, 0.45, 0.2), []),
        (Vitals(1.3, 0.45, 0.2), [("warning", "loss_worse_than_parents")]),
        (Vitals(1.51, 0.45, 0.2), [("error", "loss_much_worse")]),
        (Vitals(math.nan, 0.45, 0.2), [("error", "loss_much_worse")]),
        (Vitals(1.0, 0.07, 0.2), [("error", "overconfident")]),
        (Vitals(1.0, 0.45, 0.85), [("error", "repeats_itself")]),
        (Vitals(1.0, 0.45, None), []),
    ],
)
def test_a_result_is_held_against_its_parents(result: Vitals, expected: list[tuple[str, str]]) -> None:
    assert codes(result) == expected


def test_the_margin_is_the_caller_s_and_can_be_left_out() -> None:
    assert codes(Vitals(1.51, 0.45, 0.2), 0.5) == [("warning", "loss_worse_than_parents")]
    assert codes(Vitals(99.0, 0.45, 0.2), None) == [("warning", "loss_worse_than_parents")]
    assert compare(Vitals(99.0, 0.0, 1.0), {}) == []


def test_the_check_takes_vitals_where_it_is_given_texts(model: Path, tmp_path: Path) -> None:
    assert check_model(model).vitals is None
    report = check_model(model, texts=TEXTS)
    assert report.ok and report.vitals is not None and report.as_dict()["vitals"]["entropy"] > 0
    only = check_model(model, texts=TEXTS, only_vitals=True, writes=False)
    assert only.vitals is not None and only.architecture is None
    assert only.vitals.bits_per_byte == report.vitals.bits_per_byte
    assert check_model(tiny.vit(tmp_path / "v"), texts=TEXTS).vitals is None
