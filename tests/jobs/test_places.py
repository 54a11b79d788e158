"""A name in a recipe leads to exactly one place, and never out of the allowed roots."""

from pathlib import Path

import pytest

from jobs.errors import ModelNameInvalid
from jobs.places import FolderPlace, HubPlace, files_inside, find_inside, find_model, prefix_of, reading
from merge.file_errors import FileUnreadable


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


@pytest.mark.parametrize(
    ("name", "inside", "prefix"),
    [
        ("org/name:unet", "unet", "unet/"),
        ("org/name@main:sd_xl.safetensors", "sd_xl.safetensors", ""),
        ("org/name:a/b/c.safetensors", "a/b/c.safetensors", "a/b/"),
        ("org/name", "", ""),
    ],
)
def test_a_model_may_lie_inside_a_repository(root: Path, name: str, inside: str, prefix: str) -> None:
    place = find_model(name, [root])
    assert isinstance(place, HubPlace)
    assert (place.inside, prefix_of(place.inside)) == (inside, prefix)
    files = {"sd_xl.safetensors": 1, "unet/w.safetensors": 2, "a/b/c.safetensors": 3, "a/b/d.json": 4}
    kept = {"unet": {"w.safetensors": 2}, "sd_xl.safetensors": {"sd_xl.safetensors": 1}, "": files}
    assert files_inside(files, inside) == kept.get(inside, {"c.safetensors": 3})


@pytest.mark.parametrize("name", ["org/name:../x", "org/name:a/../b", "org/name:/etc", "org/name:"])
def test_what_lies_inside_cannot_lead_out(root: Path, name: str) -> None:
    with pytest.raises(ModelNameInvalid):
        find_model(name, [root])


def test_a_weight_file_in_a_root_is_a_model(root: Path) -> None:
    (root / "style.safetensors").write_bytes(b"")
    found = find_model("style.safetensors", [root])
    assert found == FolderPlace((root / "style.safetensors").resolve())


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
        "a" * 256,
        "\ud800",
        "circle",
        "absent",
        "texts.jsonl",
    ],
)
def test_nothing_outside_the_roots_is_reached_and_the_error_names_the_roots(root: Path, name: str) -> None:
    (root / "circle").symlink_to("circle")
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


def test_what_the_system_would_not_read_is_named(root: Path) -> None:
    with (
        pytest.raises(FileUnreadable, match=r"plain: .*absent cannot be read: No such file"),
        reading("plain"),
    ):
        (root / "plain" / "absent").read_bytes()


JOB = "job_01K9ZZZZZZZZZZZZZZZZZZZZZZ"


def test_a_job_s_id_is_what_that_job_has_made(root: Path) -> None:
    told = {JOB: "org/made@abc"}
    assert find_model(JOB, [root], told.__getitem__) == HubPlace("org/made", "abc")
    kept = root.parent / "outside"
    assert find_model(JOB, [root], lambda _: kept) == FolderPlace(kept), "wherever the service keeps it"
    with pytest.raises(ModelNameInvalid):
        find_model(JOB, [root])


@pytest.mark.parametrize("name", ["job_1", f"./{JOB}", JOB.lower()])
def test_nothing_else_is_taken_for_a_job(root: Path, name: str) -> None:
    def made_by(_: str) -> str:
        raise AssertionError("asked for a job")

    with pytest.raises(ModelNameInvalid):
        find_model(name, [root / "plain"], made_by)
