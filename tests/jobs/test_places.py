"""A name in a recipe leads to exactly one place, and never out of the allowed roots."""

from pathlib import Path

import pytest

from jobs.errors import ModelNameInvalid
from jobs.places import FolderPlace, HubPlace, find_inside, find_model


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inside = tmp_path / "models"
    (inside / "org" / "name").mkdir(parents=True)
    (inside / "plain").mkdir()
    (inside / "texts.jsonl").write_text("{}")
    (tmp_path / "outside").mkdir()
    (inside / "link").symlink_to(tmp_path / "outside")
    (inside / "inner").symlink_to(inside / "plain")
    return inside


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("org/name", "org/name", None),
        ("org/name@main", "org/name", "main"),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
        ("a.b-c/d_e.7B@v1.0", "a.b-c/d_e.7B", "v1.0"),
    ],
)
def test_the_hub_s_form_is_always_the_hub_s_even_if_a_folder_has_the_name(
    root: Path, name: str, repo: str, revision: str | None
) -> None:
    assert find_model(name, [root]) == HubPlace(repo, revision)


@pytest.mark.parametrize("name", ["plain", "./plain", "./org/name", "inner", "plain/../plain"])
def test_other_forms_are_folders_inside_the_roots(root: Path, name: str) -> None:
    found = find_model(name, [root / "absent", root])
    assert isinstance(found, FolderPlace)
    assert found.path in {root / "plain", root / "org" / "name"}
    assert find_model(str(found.path), [root]) == found


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "./../outside",
        "link",
        "/etc",
        "~",
        "~root",
        "plain/../../outside",
        "a\0b",
        "absent",
        "texts.jsonl",
    ],
)
def test_nothing_outside_the_roots_is_reached_and_the_error_names_the_roots(root: Path, name: str) -> None:
    with pytest.raises(ModelNameInvalid) as refused:
        find_model(name, [root])
    assert f"allowed roots ({root})" in str(refused.value)
    assert "exists" not in str(refused.value)


def test_without_roots_no_folder_is_allowed(root: Path) -> None:
    with pytest.raises(ModelNameInvalid, match="allows no folders"):
        find_model(str(root / "plain"), [])


def test_files_are_found_like_folders(root: Path) -> None:
    assert find_inside("texts.jsonl", [root], folder=False) == root / "texts.jsonl"
    with pytest.raises(ModelNameInvalid, match="no file inside"):
        find_inside("plain", [root], folder=False)
