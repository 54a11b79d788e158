"""Parquet files of items are the JSON lines that they would be."""

import datetime
import io
import json
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from scoring.digest import task_digest
from scoring.errors import SetInvalid, SetTooLarge
from scoring.lines import Limits
from scoring.tasks import PerplexityTask, RetrievalTask, Task, parse_task

QUESTIONS = [
    {"context": f"{number} and one is", "choices": [str(number), str(number + 1)], "answer": 1}
    for number in range(100)
]


def table(rows: list[dict[str, Any]]) -> bytes:
    """The rows as a Parquet file."""
    file, names = io.BytesIO(), dict.fromkeys(name for row in rows for name in row)
    parquet.write_table(arrow.table({name: [row.get(name) for row in rows] for name in names}), file)
    return file.getvalue()


def read(kind: str, rows: list[dict[str, Any]], **options: Any) -> Task:
    return parse_task("set", kind, table(rows), file="rows.Parquet", **options)


@pytest.mark.parametrize("limit", [None, 3])
def test_a_set_is_the_same_in_either_form(limit: int | None) -> None:
    lines = "".join(json.dumps(each) + "\n" for each in QUESTIONS).encode()
    plain = parse_task("set", "choice", lines, file="rows.jsonl", limit=limit)
    assert task_digest(read("choice", QUESTIONS, limit=limit)) == task_digest(plain)


def test_characters_lines_and_columns_that_nobody_asks_for_do_no_harm() -> None:
    rows = [{"text": "zwei\nZeilen ü 🎈", "when": datetime.date(2020, 1, 1), "raw": b"\xff", "no": None}]
    task = read("perplexity", rows)
    assert isinstance(task, PerplexityTask) and task.texts == ("zwei\nZeilen ü 🎈",)


def test_times_that_python_has_none_for_do_no_harm() -> None:
    """As pandas writes them: to the nanosecond; or far in the future."""
    fine, far = arrow.array([1], arrow.timestamp("ns")), arrow.array([2**62], arrow.timestamp("us"))
    inside = arrow.array([{"at": 1, "by": "x"}], arrow.struct([("at", fine.type), ("by", arrow.string())]))
    file = io.BytesIO()
    columns = {"fine": fine, "text": ["one"], "far": far, "inside": inside}
    parquet.write_table(arrow.table(columns), file)
    task = parse_task("set", "perplexity", file.getvalue(), file="rows.parquet")
    assert isinstance(task, PerplexityTask) and task.texts == ("one",)


def test_passages_and_queries_share_a_file() -> None:
    passages = [{"id": f"d{number}", "text": f"about {number}"} for number in range(3)]
    task = read("retrieval", [*passages, {"query": "what of 2?", "relevant": ["d2"]}])
    assert isinstance(task, RetrievalTask) and task.queries[0].relevant == ((2, 1.0),)


def test_a_wrong_row_is_named_with_its_field() -> None:
    with pytest.raises(SetInvalid, match=r"rows.Parquet line 3, field 'answer'"):
        read("choice", [*QUESTIONS[:2], {**QUESTIONS[2], "answer": 7}])
    with pytest.raises(SetInvalid, match=r"line 1, field 'text': is missing \(the line has: answer"):
        read("perplexity", QUESTIONS)


def test_two_columns_of_one_name_are_refused() -> None:
    file = io.BytesIO()
    parquet.write_table(arrow.Table.from_arrays([["one"], ["two"]], ["text", "text"]), file)
    with pytest.raises(SetInvalid, match="field 'text': is the name of more than one column"):
        parse_task("set", "perplexity", file.getvalue(), file="rows.parquet")


def test_what_is_no_parquet_is_told() -> None:
    with pytest.raises(SetInvalid, match="does not begin as such a file does"):
        parse_task("set", "perplexity", b'{"text": "x"}\n', file="rows.parquet")
    with pytest.raises(SetInvalid, match="cannot be read as Parquet"):
        parse_task("set", "perplexity", table(QUESTIONS)[:-20], file="rows.parquet")


def test_a_small_file_that_unfolds_to_much_is_refused() -> None:
    rows = [{"text": "again " * 1000}] * 2000
    assert len(table(rows)) < 100_000
    with pytest.raises(SetTooLarge, match="unfolds to more than 1,000,000 bytes"):
        read("perplexity", rows, limits=Limits(file_bytes=1_000_000))
    noise = [{"text": f"{number:030d}"} for number in range(1000)]
    packed = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(noise), packed, compression="zstd", use_dictionary=False)
    with pytest.raises(SetTooLarge, match=r"unfolds to \d\d,\d+ bytes"):
        parse_task("s", "perplexity", packed.getvalue(), file="a.parquet", limits=Limits(file_bytes=20_000))
