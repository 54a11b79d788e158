"""Evaluation sets are read as written, and a malformed one is refused by file, line and field."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from scoring.errors import SetInvalid, SetTooLarge
from scoring.lines import Limits
from scoring.settings import BY_KIND
from scoring.tasks import ChoiceTask, PerplexityTask, Question, parse_task

GOOD = {"context": "2+2=", "choices": ["3", "4"], "answer": 1}


def choice(row: object) -> ChoiceTask:
    line = row if isinstance(row, str) else json.dumps(row)
    task = parse_task("sums", "choice", f"{json.dumps(GOOD)}\n{line}\n".encode(), file="sums.jsonl")
    assert isinstance(task, ChoiceTask)
    return task


def texts(body: bytes, file: str = "a.jsonl", limit: int | None = None) -> tuple[str, ...]:
    task = parse_task("a", "perplexity", body, file=file, limit=limit)
    assert isinstance(task, PerplexityTask)
    return task.texts


def test_a_txt_file_is_one_text() -> None:
    assert texts("naïve\n\ncafé\n".encode(), file="A.TXT") == ("naïve\n\ncafé\n",)


def test_json_lines_give_one_text_each_and_blank_lines_are_passed_over() -> None:
    assert texts(b'{"text": "a", "id": 1}\n\n{"text": "b"}') == ("a", "b")


def test_a_byte_order_mark_is_not_part_of_the_text() -> None:
    assert texts("\ufeffhello".encode(), file="a.txt") == ("hello",)


def test_limit_reads_the_first_items_and_not_what_follows() -> None:
    assert texts(b'{"text": "a"}\n{"text": "b"}\nnot json', limit=2) == ("a", "b")


@pytest.mark.parametrize("answer", [2, "C", "blue"])
def test_an_answer_is_an_index_a_letter_or_the_text(answer: object) -> None:
    row = {"question": "Sky?", "choices": ["red", "green", "blue"], "answer": answer}
    assert choice(row).questions[1] == Question("Sky?", ("red", "green", "blue"), 2)


def test_an_answer_that_is_a_choice_is_taken_as_text_before_it_is_taken_as_a_letter() -> None:
    assert choice({"context": "q", "choices": ["B", "A"], "answer": "A"}).questions[1].answer == 1


@pytest.mark.parametrize("answer", ["a", "[", "`"])
def test_what_follows_z_is_no_letter_however_many_choices_there_are(answer: str) -> None:
    many = [f"choice {at}" for at in range(40)]
    assert choice({"context": "q", "choices": many, "answer": "Z"}).questions[1].answer == 25
    with pytest.raises(SetInvalid, match=r"index \(0 to 39\), letter \(A to Z\) or text"):
        choice({"context": "q", "choices": many, "answer": answer})


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({**GOOD, "context": 5}, "context"),
        ({"choices": ["a", "b"], "answer": 0}, "context"),
        ({**GOOD, "question": "again?"}, "question"),
        ({**GOOD, "choices": "ab"}, "choices"),
        ({**GOOD, "choices": ["only"]}, "choices"),
        ({**GOOD, "choices": ["same", "same"]}, "choices"),
        ({**GOOD, "choices": ["a", ""]}, "choices[1]"),
        ({**GOOD, "choices": ["a", None]}, "choices[1]"),
        ({**GOOD, "answer": 2}, "answer"),
        ({**GOOD, "answer": -1}, "answer"),
        ({**GOOD, "answer": True}, "answer"),
        ({**GOOD, "answer": "C"}, "answer"),
        ({**GOOD, "answer": 0.5}, "answer"),
        ({"context": "q", "choices": ["a", "b"]}, "answer"),
        ({**GOOD, "context": "\ud800"}, "context"),
    ],
)
def test_a_malformed_question_is_refused_by_line_and_field(row: object, field: str) -> None:
    with pytest.raises(SetInvalid) as caught:
        choice(row)
    assert (caught.value.file, caught.value.line, caught.value.field) == ("sums.jsonl", 2, field)
    assert f"sums.jsonl line 2, field '{field}'" in str(caught.value)


@pytest.mark.parametrize("line", ["{", "[1]", "null", "[" * 100_000, "5"])
def test_a_line_that_is_no_json_object_is_refused_by_its_number(line: str) -> None:
    with pytest.raises(SetInvalid) as caught:
        choice(line)
    assert caught.value.line == 2


@pytest.mark.parametrize(
    ("body", "line"), [(b'{"text": "a"}\n{"text": ""}', 2), (b'{"tex": "a"}', 1), (b'{"text": 1}', 1)]
)
def test_a_text_that_is_empty_or_missing_is_refused(body: bytes, line: int) -> None:
    with pytest.raises(SetInvalid) as caught:
        texts(body)
    assert (caught.value.line, caught.value.field) == (line, "text")


def test_bytes_that_are_not_utf8_are_refused_by_line() -> None:
    with pytest.raises(SetInvalid) as caught:
        texts(b'{"text": "a"}\n{"text": "\xff"}')
    assert caught.value.line == 2


@pytest.mark.parametrize(("body", "file"), [(b"", "a.jsonl"), (b"\n \n", "a.jsonl"), (b"  \n", "a.txt")])
def test_an_empty_set_is_refused(body: bytes, file: str) -> None:
    with pytest.raises(SetInvalid, match="holds no texts"):
        texts(body, file=file)


def test_an_unknown_kind_and_a_limit_of_nothing_are_refused() -> None:
    with pytest.raises(SetInvalid, match="perplexity, choice"):
        parse_task("a", "vibes", b"", file="a.jsonl")
    with pytest.raises(SetInvalid, match="at least 1"):
        texts(b"{}", limit=0)


@pytest.mark.parametrize(
    "limits",
    [Limits(file_bytes=20), Limits(items=1), Limits(item_characters=3)],
    ids=["bytes", "items", "text"],
)
def test_a_set_beyond_the_limits_is_refused(limits: Limits) -> None:
    with pytest.raises(SetTooLarge):
        parse_task("a", "perplexity", b'{"text": "abcd"}\n{"text": "b"}', file="a.jsonl", limits=limits)


def test_items_past_the_most_allowed_may_follow_when_a_limit_leaves_them_out() -> None:
    body = b'{"text": "a"}\n{"text": "b"}'
    assert parse_task("a", "perplexity", body, file="a.jsonl", limit=1, limits=Limits(items=1))


def parsed(kind: Any, rows: list[dict[str, Any]], **settings: Any) -> Any:
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return parse_task("t", kind, body, file="rows.jsonl", settings=BY_KIND[kind](**settings))


def test_every_other_kind_reads_its_own_lines() -> None:
    assert parsed("exact_match", [{"prompt": "2+2=", "answer": ["4", "four"]}]).prompts[0].answers == (
        "4",
        "four",
    )
    assert parsed("classification", [{"text": "x", "label": "spam"}]).items[0].label == "spam"
    zero = parsed("zero_shot", [{"text": "x", "label": "b"}, {"text": "y", "label": 0}], classes=("a", "b"))
    assert [item.label for item in zero.items] == [1, 0]
    pairs = [{"left": "a", "right": "b", "score": n} for n in range(3)]
    assert parsed("similarity", pairs).pairs[2].score == 2.0
    rows = [{"id": "d1", "text": "x"}, {"id": "d2", "text": "y"}, {"query": "q", "relevant": {"d2": 2}}]
    assert parsed("retrieval", rows).queries[0].relevant == ((1, 2.0),)
    assert parsed("retrieval", [*rows, {"query": "p", "relevant": ["d1"]}]).queries[1].relevant == ((0, 1.0),)


@pytest.mark.parametrize(
    ("kind", "row", "field"),
    [
        ("exact_match", {"prompt": " ", "answer": "4"}, "prompt"),
        ("exact_match", {"prompt": "2", "answer": []}, "answer"),
        ("classification", {"text": "x", "label": True}, "label"),
        ("zero_shot", {"text": "x", "label": "c"}, "label"),
        ("zero_shot", {"text": "x", "label": 2}, "label"),
        ("similarity", {"left": "a", "right": "b", "score": "high"}, "score"),
        ("similarity", {"left": "a", "right": "", "score": 1}, "right"),
        ("retrieval", {"query": "q", "relevant": ["d9"]}, "relevant"),
        ("retrieval", {"query": "q", "relevant": []}, "relevant"),
        ("retrieval", {"query": "q", "relevant": {"d1": 0}}, "relevant"),
        ("retrieval", {"id": "d1", "text": "again"}, "id"),
    ],
)
def test_a_wrong_line_of_any_kind_is_named(kind: Any, row: dict[str, Any], field: str) -> None:
    first = {
        "exact_match": {"prompt": "2", "answer": "2"},
        "classification": {"text": "x", "label": 0},
        "zero_shot": {"text": "x", "label": 0},
        "similarity": {"left": "a", "right": "b", "score": 1},
        "retrieval": {"id": "d1", "text": "x"},
    }[kind]
    with pytest.raises(SetInvalid) as caught:
        parsed(kind, [first, row], **({"classes": ("a", "b")} if kind == "zero_shot" else {}))
    assert (caught.value.line, caught.value.field) == (2, field)


def test_passages_come_before_queries_and_pairs_are_enough_to_rank() -> None:
    late = [{"id": "d1", "text": "x"}, {"query": "q", "relevant": ["d1"]}, {"id": "d2", "text": "y"}]
    with pytest.raises(SetInvalid, match="first query"):
        parsed("retrieval", late)
    with pytest.raises(SetInvalid, match="fewer than 3 pairs"):
        parsed("similarity", [{"left": "a", "right": "b", "score": 1}] * 2)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("perplexity", {"form": "poem"}),
        ("choice", {"normalise": "words"}),
        ("exact_match", {"stop": [""]}),
        ("zero_shot", {"classes": ["a", "a"]}),
        ("zero_shot", {"classes": ["a", "b"], "template": "no place"}),
        ("zero_shot", {"classes": ["a", "b"], "temperature": 0}),
        ("retrieval", {"k": 0}),
        ("classification", {"head": "new"}),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BY_KIND[kind].model_validate(settings)
