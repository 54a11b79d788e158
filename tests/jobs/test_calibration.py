"""What can be told of calibration data before a job starts, and which queue a job goes to."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.calibration import (
    FIRST_BYTES,
    DataSeen,
    Places,
    Upload,
    bindings,
    check_start,
    kind_of,
    pin,
    see,
)
from jobs.statistics import queue_of, samples_for
from merge.errors import CalibrationEmpty, CalibrationEncoding, CalibrationFormat, CalibrationTooLarge
from merge.planning.measuring import StatisticsPlan
from merge.recipe.calibration import CalibrationData
from merge.recipe.recipe import recipe_from

LIMIT = 1 << 24
AIM: dict[str, Any] = {
    "base": "org/base",
    "sources": [{"id": "a", "model": "org/a"}],
    "steps": [{"method": "task_arithmetic"}, {"method": "aim"}],
}


@pytest.mark.parametrize(
    ("name", "first", "kind"),
    [
        ("a.TXT", b"{", ".txt"),
        ("data", b'\xef\xbb\xbf {"text": "x"}', ".jsonl"),
        ("data", b"words", ".txt"),
        ("x.parquet", b"", ".parquet"),
        ("x.ndjson", b"", ".ndjson"),
    ],
)
def test_a_file_is_read_as_its_name_says_or_as_an_upload_begins(name: str, first: bytes, kind: str) -> None:
    assert kind_of(name, first) == kind


def test_a_character_that_was_cut_is_no_wrong_encoding() -> None:
    text = ("ü" * FIRST_BYTES).encode()
    first = text[: FIRST_BYTES - 1]
    with pytest.raises(UnicodeDecodeError):
        first.decode()
    check_start("x.txt", ".txt", first, len(text), LIMIT)
    with pytest.raises(CalibrationEncoding):
        check_start("x.txt", ".txt", b"\xff" + first, len(text), LIMIT)


def test_a_line_that_was_cut_is_not_read() -> None:
    line = b'{"text": "words"}\n'
    check_start("x.jsonl", ".jsonl", line + line[:5], 10_000, LIMIT)
    with pytest.raises(CalibrationFormat):
        check_start("x.jsonl", ".jsonl", b"[]\n" + line[:5], 10_000, LIMIT)


def test_white_space_at_the_beginning_of_a_long_file_is_none_of_its_faults() -> None:
    check_start("x.txt", ".txt", b" \n" * 100, 10_000, LIMIT)
    check_start("x.jsonl", ".jsonl", b'{"text": " "}\n' * 100, 10_000, LIMIT)
    with pytest.raises(CalibrationEmpty):
        check_start("x.txt", ".txt", b" \n" * 100, 200, LIMIT)


def test_what_is_too_large_is_refused_by_its_size_alone() -> None:
    with pytest.raises(CalibrationTooLarge):
        check_start("x.txt", ".txt", b"", LIMIT + 1, LIMIT)


def test_only_what_is_measured_on_is_looked_at() -> None:
    assert not list(bindings(recipe_from({**AIM, "steps": [{"method": "linear"}]})))
    recipe = recipe_from({**AIM, "calibration": {"by_source": {"a": {"path": "a.txt"}}}})
    assert [pointer for pointer, _ in bindings(recipe)] == ["/calibration/data", "/calibration/by_source/a"]


def test_data_of_the_hub_is_named_by_its_commit() -> None:
    recipe = recipe_from({**AIM, "calibration": {"data": {"hub": "org/texts", "file": "x.txt"}}})
    pinned = CalibrationData(hub="org/texts@" + "1" * 40, file="x.txt")
    made = pin(recipe, {"/calibration/data": DataSeen(pinned, "d")})
    assert made.calibration == recipe.calibration.model_copy(update={"data": pinned})
    assert pin(recipe, {}) is recipe


@pytest.mark.parametrize(
    ("seconds", "limit", "queue"), [(100.0, 0.0, "cpu"), (100.0, 60.0, "gpu"), (59.0, 60.0, "cpu")]
)
def test_long_measuring_goes_to_a_gpu_where_there_is_one(seconds: float, limit: float, queue: str) -> None:
    plan: Any = SimpleNamespace(statistics=replace(StatisticsPlan(), seconds=seconds), queue="cpu")
    assert queue_of(plan, limit) == queue


@pytest.mark.parametrize(("name", "lines"), [("x.jsonl", True), ("x.txt", False), ("unnamed", True)])
def test_how_an_upload_is_read_is_part_of_what_is_measured(name: str, lines: bool) -> None:
    body = b'{"text": "words and words, and words again"}\n'
    row = Upload(name, "d" * 64, len(body), body)
    places = SimpleNamespace(uploads=lambda _: row, limit=LIMIT)
    seen = see(CalibrationData(dataset="ds_1"), cast(Places, places))
    assert seen.lines is lines
    recipe = recipe_from(AIM)
    assert samples_for(recipe, "base", seen.sha256, lines=seen.lines).settings["lines"] is lines
