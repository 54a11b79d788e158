"""The committed family: small, sound, honestly split, and worth merging."""

import json
from pathlib import Path
from statistics import fmean

import pytest

from demo.compare import CANDIDATES, bits_per_byte, merge_family, read_sets
from demo.families import HERE, Family, tiny
from scoring.check import check_model
from scoring.tasks import ChoiceTask, parse_task

HOME = HERE / "family"
TEXTS = ("python", "dictionary", "prose", "sums")


def lines(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def family() -> Family:
    return tiny(HOME, print)


def test_it_is_small_enough_to_be_committed() -> None:
    assert sum(path.stat().st_size for path in HOME.rglob("*") if path.is_file()) < 8_000_000


@pytest.mark.parametrize("name", ["base", "python", "dictionary"])
def test_every_member_works(name: str) -> None:
    report = check_model(HOME / name)
    assert report.findings == () and report.parameters == 857_216
    assert "license: apache-2.0" in (HOME / name / "README.md").read_text()


def test_licences_of_every_text_lie_beside_it() -> None:
    notes = (HOME / "LICENSES.md").read_text()
    assert all(name in notes for name in (*TEXTS, "kinds", "licenses/PYTHON.txt", "licenses/WORDNET.txt"))
    assert "Princeton" in (HOME / "licenses/WORDNET.txt").read_text()
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (HOME / "licenses/PYTHON.txt").read_text()


@pytest.mark.parametrize("name", TEXTS)
def test_validation_and_held_out_texts_have_nothing_in_common(name: str) -> None:
    held_out, validation = lines(HOME / "texts", name), lines(HOME / "texts/validation", name)
    assert len(held_out) >= 20 and len(validation) >= 20
    assert not set(held_out) & set(validation)


def test_guessing_the_kind_is_right_once_in_four() -> None:
    task = parse_task("kinds", "choice", (HOME / "texts/kinds.jsonl").read_bytes(), file="kinds.jsonl")
    assert isinstance(task, ChoiceTask)
    assert {len(question.choices) for question in task.questions} == {4}
    share = fmean(question.answer == 0 for question in task.questions)
    assert 0.15 < share < 0.35
    kinds = [question.choices[question.answer] for question in task.questions]
    assert max(map(kinds.count, kinds)) <= 2 * len(kinds) / len(set(kinds))


def test_the_demo_s_merge_beats_every_model_it_is_made_of(family: Family, tmp_path: Path) -> None:
    sets = read_sets(HOME / "texts", limit=60)
    result = fmean(bits_per_byte(merge_family(family.steps, tmp_path / "out"), sets))
    parents = {name: fmean(bits_per_byte(folder, sets)) for name, folder in family.folders.items()}
    assert result < min(parents.values()) - 0.003, (result, parents)


def test_the_recipe_of_the_demo_is_one_of_those_compared(family: Family) -> None:
    assert family.steps in CANDIDATES


def test_the_recipe_was_chosen_on_other_texts_than_it_is_shown_on(family: Family) -> None:
    assert all(each.file.parent == HOME / "texts" for each in family.sets)
    assert json.loads(lines(HOME / "texts/validation", "python")[0])["text"]
