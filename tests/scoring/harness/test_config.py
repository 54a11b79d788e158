"""What a task of one's own may say: plain data, known metrics, nothing that could run."""

import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from scoring.digest import task_digest
from scoring.errors import SetInvalid
from scoring.harness.config import HarnessConfig, rendered
from scoring.harness.task import HarnessTask
from scoring.settings import LmEvalSettings, metrics_of
from scoring.tasks import parse_task

CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{q}}",
    "doc_to_choice": "{{c}}",
    "doc_to_target": "{{a}}",
    "metric_list": [{"metric": "acc"}],
}
ROW = {"q": "What is it?", "c": ["this", "that"], "a": 1}


def parse(rows: list[dict[str, Any]], **changes: Any) -> HarnessTask:
    settings = LmEvalSettings(config={**CHOICE, **changes})
    settings.check(True)
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    task = parse_task("t", "lm_eval", body, file="rows.jsonl", settings=settings)
    assert isinstance(task, HarnessTask)
    return task


def test_a_sound_task_keeps_the_fields_that_its_templates_name() -> None:
    task = parse([ROW | {"spare": {"deep": 1}}])
    assert task.rows == ({"q": "What is it?", "c": ["this", "that"], "a": 1},)
    assert task.config is not None and task.config.plain()["doc_to_choice"] == "c"
    assert rendered("Q: {{q}}!", ROW) == "Q: What is it?!"
    assert task_digest(task) != task_digest(parse([ROW], doc_to_text="A: {{q}}"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"doc_to_text": "{{ q.__class__ }}"}, "no expressions"),
        ({"doc_to_text": "{% for x in q %}{% endfor %}"}, "no expressions"),
        ({"doc_to_text": "{{ q | upper }}"}, "no expressions"),
        ({"description": "{{ cycler.__init__ }}"}, "no expressions"),
        ({"doc_to_target": "!function utils.answer"}, "functions cannot be named"),
        ({"process_docs": "utils.f"}, "process_docs"),
        ({"dataset_path": "json"}, "dataset_path"),
        ({"unsafe_code": True}, "unsafe_code"),
        ({"metric_list": [{"metric": "my_metric"}]}, "'my_metric' is no metric of multiple_choice"),
        ({"metric_list": [{"metric": "likelihood"}]}, "'likelihood' is no metric of multiple_choice"),
        (
            {"metric_list": [{"metric": "acc", "aggregation": "!function x.y"}]},
            "of acc is mean: leave it out",
        ),
        ({"metric_list": [{"metric": "acc", "higher_is_better": False}]}, "of acc more is better"),
        (
            {"metric_list": [{"metric": "brier_score", "higher_is_better": True}]},
            "brier_score less is better",
        ),
        ({"metric_list": []}, "metric_list"),
        ({"doc_to_choice": "{{ c | tojson }}"}, "must be a list of texts"),
        ({"generation_kwargs": {"until": ["\n"]}}, "generate_until alone"),
        ({"output_type": "generate_until", "doc_to_choice": None, "metric_list": [{"metric": "acc"}]}, "acc"),
    ],
)
def test_what_could_run_or_reach_out_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        HarnessConfig.model_validate({**CHOICE, **changes})


def test_what_a_task_measures_is_told_in_its_order_or_by_default() -> None:
    usual = {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}
    named = LmEvalSettings(config={**CHOICE, "metric_list": [usual, {"metric": "f1"}]})
    assert named.metrics == metrics_of("lm_eval", named) == ("acc_norm", "f1")
    config = {name: value for name, value in CHOICE.items() if name != "metric_list"}
    silent = LmEvalSettings(config=config)
    assert metrics_of("lm_eval", silent) == ("acc", "acc_norm")
    read = HarnessConfig.model_validate(config)
    assert read.plain()["metric_list"] == [{"metric": "acc"}, {"metric": "acc_norm"}]
    assert HarnessConfig.model_validate(named.config).plain()["metric_list"] == [usual, {"metric": "f1"}]
    assert metrics_of("lm_eval", LmEvalSettings(task="arc_easy")) == ()


def test_a_task_s_yaml_is_read_as_it_lies_in_its_file() -> None:
    text = """
output_type: multiple_choice
doc_to_text: "Q: {{q}}"
doc_to_choice: "{{c}}"
doc_to_target: "{{a}}"
metric_list:
  - metric: acc
"""
    assert LmEvalSettings.model_validate({"config": text}) == LmEvalSettings(config=CHOICE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("doc_to_text: !function utils.text", r"line 1.*'!function'"),
        ("a: !!python/object/apply:os.system [ls]", "python/object"),
        ("a: &x [1]\nb: [*x, *x]", "aliases are not read"),
        ("- a\n- b", "no mapping"),
        ("a: [", "line 1"),
        ("a: " + "x" * 300_000, "at most 200,000"),
    ],
)
def test_yaml_that_is_not_plain_data_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LmEvalSettings.model_validate({"config": text})


def test_sampling_is_refused() -> None:
    config = {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "metric_list": [{"metric": "exact_match"}],
    }
    HarnessConfig.model_validate(config | {"generation_kwargs": {"max_gen_toks": 3}})
    with pytest.raises(ValidationError, match="do_sample"):
        HarnessConfig.model_validate(config | {"generation_kwargs": {"do_sample": True}})


@pytest.mark.parametrize(
    ("row", "changes", "field"),
    [
        ({"q": "x"}, {}, "a"),
        (ROW | {"q": "  "}, {"doc_to_text": "{{q}}"}, "doc_to_text"),
        (ROW | {"a": 2}, {}, "doc_to_target"),
        (ROW | {"a": "the other"}, {}, "doc_to_target"),
        (ROW | {"c": ["one"]}, {}, "c"),
        (ROW | {"c": "this"}, {}, "c"),
        (ROW | {"q": ["list"]}, {}, "q"),
    ],
)
def test_an_item_that_would_stop_the_harness_is_named(
    row: dict[str, Any], changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(SetInvalid) as caught:
        parse([ROW, row], **changes)
    assert (caught.value.line, caught.value.field) == (2, field)


@pytest.mark.parametrize(
    ("settings", "has_data"),
    [
        ({}, True),
        ({"task": "arc_easy", "config": CHOICE}, True),
        ({"task": "arc_easy"}, True),
        ({"config": CHOICE}, False),
    ],
)
def test_a_set_is_either_built_in_or_has_data(settings: dict[str, Any], has_data: bool) -> None:
    with pytest.raises(ValueError, match="lm_eval set"):
        LmEvalSettings(**settings).check(has_data)


def test_everything_that_decides_a_score_is_in_the_digest() -> None:
    told = {
        task_digest(replace(task, settings=settings, **changes))
        for task in [HarnessTask("t", ())]
        for settings in (
            LmEvalSettings(task="arc_easy"),
            LmEvalSettings(task="arc_challenge"),
            LmEvalSettings(task="arc_easy", num_fewshot=5),
            LmEvalSettings(config=CHOICE),
            LmEvalSettings(config={**CHOICE, "metric_list": [{"metric": "f1"}]}),
        )
        for changes in ({}, {"limit": 8}, {"limit": 0.5}, {"rows": (ROW,)}, {"version": "0.4.14/2"})
    }
    assert len(told) == 25
    one = HarnessTask("t", (), settings=LmEvalSettings(task="arc_easy"))
    assert task_digest(one) == task_digest(replace(one, name="another name")) in told


def test_a_built_in_task_has_no_items_of_ours() -> None:
    task = parse_task("t", "lm_eval", b"", file="t", limit=5, settings=LmEvalSettings(task="arc_easy"))
    assert isinstance(task, HarnessTask) and (task.rows, task.limit, task.config) == ((), 5, None)
