"""Objectives that name sets of lm_eval: what the order must say, and what is known without the harness."""

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.request import SearchRequest, read_order

CONFIG: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": ["yes", "no"],
    "doc_to_target": "{{a}}",
    "metric_list": [{"metric": "acc"}, {"metric": "f1"}],
}
SETS = [
    {"name": "own", "kind": "lm_eval", "data": {"path": "rows.jsonl"}, "settings": {"config": CONFIG}},
    {"name": "arc", "kind": "lm_eval", "settings": {"task": "arc_easy"}},
]
NUMBERS = {name: {"at": f"sources.{name}.weight", "low": 0, "high": 1} for name in "ab"}


def search(*objectives: dict[str, Any], **more: Any) -> SearchRequest:
    sources = [{"id": name, "model": f"org/{name}"} for name in "ab"]
    order = read_order(
        {
            "kind": "search",
            "recipe": {"base": "org/base", "sources": sources, "steps": ["task_arithmetic"]},
            "search": {"method": "tpe", "space": NUMBERS, "objectives": list(objectives), **more},
            "evaluate": {"sets": SETS},
        }
    )
    assert isinstance(order, SearchRequest)
    return order


@pytest.mark.parametrize(
    "objective",
    [
        {"set": "own"},
        {"set": "own", "metric": "f1"},
        {"set": "arc", "metric": "acc_norm"},
        {"set": "arc", "metric": "mmlu_law:exact_match,strict-match"},
        {"set": "arc", "metric": "prompt_level_strict_acc", "goal": "max"},
    ],
)
def test_what_is_known_or_said_is_taken(objective: dict[str, Any]) -> None:
    (read,) = search(objective).search.objectives
    assert read.model_dump(exclude_defaults=True) == objective


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (
            {"set": "own", "metric": "acc_norm"},
            "the lm_eval set 'own' does not measure 'acc_norm', but acc, f1",
        ),
        ({"set": "arc"}, "'arc' is a built-in task of lm_eval.*name the metric here, such as acc"),
        (
            {"set": "arc", "metric": "strictly"},
            "more or less of 'strictly' is better is not known here: add goal",
        ),
        ({"set": "arc", "metric": "arc:strictly,none"}, "add goal: max, or goal: min"),
    ],
)
def test_what_only_the_harness_knows_must_be_said(objective: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        search(objective)


def test_niches_need_the_value_of_every_example() -> None:
    assert search({"set": "arc", "metric": "acc"}, method="m2n2")
    assert search({"set": "own"}, {"set": "own", "metric": "f1"}, method="m2n2")
    for first in ({"set": "own", "metric": "f1"}, {"set": "arc", "metric": "strictly", "goal": "max"}):
        with pytest.raises(ValidationError, match=f"lm_eval has none by '{first['metric']}'"):
            search(first, method="m2n2")
