"""No text is in two splits, and what was drawn once is drawn again."""

from pathlib import Path

import pytest

from quality.cache import kept, keyed_folder
from quality.classifiers import split_rows
from quality.text_tasks import SIZES, fewer, text_tasks
from quality.tiny_texts import SHARES, pages, split_groups

ROWS = [(f"text {number}", f"class {number % 3}") for number in range(6000)]


def test_splits_have_their_sizes_and_nothing_in_common() -> None:
    splits = split_rows("task", ROWS + ROWS, None, SIZES)
    texts = [text for rows in splits.values() for text, _ in rows]
    assert {split: len(rows) for split, rows in splits.items()} == SIZES and len(texts) == len(set(texts))
    assert splits == split_rows("task", ROWS, None, SIZES) != split_rows("other", ROWS, None, SIZES)


def test_a_sets_own_test_part_is_what_is_tested() -> None:
    own = [(f"own {number}", "class 0") for number in range(700)] + ROWS[:50]
    splits = split_rows("task", ROWS, own, SIZES)
    assert {text for text, _ in splits["test"]} <= {text for text, _ in own}
    assert not {text for text, _ in own} & {text for text, _ in splits["train"]}


def test_no_class_has_more_rows_than_allowed() -> None:
    kept_rows = fewer(ROWS, most=10)
    assert [sum(label == f"class {n}" for _, label in kept_rows) for n in range(3)] == [10, 10, 10]


def test_documents_of_one_file_stay_in_one_split() -> None:
    groups = [[f"{file}/{part} " + "x" * 600 for part in range(3)] for file in range(100)]
    splits = split_groups("domain", groups)
    files = {split: {text.partition("/")[0] for text in texts} for split, texts in splits.items()}
    assert not files["test"] & files["train"] and not files["test"] & files["validation"]
    assert len(files["test"]) == round(100 * SHARES["test"])


def test_short_texts_are_joined_to_pages() -> None:
    assert pages(["a" * 400, "b" * 400, "c"]) == ["a" * 400 + "\n" + "b" * 400, "c"]


def test_tasks_that_are_kept_are_not_made_again(tmp_path: Path) -> None:
    told = '{"labels": ["x", "y"], "splits": {"test": [["text", 1]]}}'
    (tmp_path / "spam.json").write_text(told)
    task = text_tasks(tmp_path, tmp_path / "nowhere", ["spam"])["spam"]
    assert task.labels == ("x", "y") and task.splits["test"] == [("text", 1)]


def test_another_setting_is_another_folder(tmp_path: Path) -> None:
    one, two = (keyed_folder(tmp_path, "a", {"steps": steps}) for steps in (1, 2))
    assert one != two and one == keyed_folder(tmp_path, "a", {"steps": 1})


def test_a_result_that_could_not_be_made_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        kept(tmp_path / "result.json", lambda: 1 / 0)
    assert not list(tmp_path.iterdir())
