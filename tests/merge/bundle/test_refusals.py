"""What is wrong with a bundle, or with the wish for one, is said by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.__main__ import main
from merge.errors import PlanRefused, RecipeInvalid
from merge.recipe.recipe import recipe_from
from tests.merge.bundle.conftest import Shop

Change = Callable[[Path], None]


def edited(change: Callable[[dict[str, Any]], None]) -> Change:
    def work(bundle: Path) -> None:
        document = json.loads((bundle / "bundle.json").read_bytes())
        change(document)
        (bundle / "bundle.json").write_text(json.dumps(document))

    return work


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    def work(bundle: Path) -> None:
        held = load_file(bundle / "bundle.safetensors")
        change(held)
        save_file(held, bundle / "bundle.safetensors", {"format": "pt"})

    return work


def cut(bundle: Path) -> None:
    content = (bundle / "bundle.safetensors").read_bytes()
    (bundle / "bundle.safetensors").write_bytes(content[:-7])


def garbled(bundle: Path) -> None:
    (bundle / "bundle.json").write_text("{")


MASK = "mask/a/model.norm.weight"
BROKEN: dict[str, tuple[Change, str]] = {
    "newer": (edited(lambda told: told.update(format=2)), "format 2, but this version reads format 1"),
    "no version": (edited(lambda told: told.pop("format")), "format None"),
    "no kind": (edited(lambda told: told.update(kind="zip")), "no kind of bundle 'zip'"),
    "no members": (edited(lambda told: told.update(members={})), "members of bundle.json"),
    "odd member": (edited(lambda told: told.update(members={"../x": {}})), "members of bundle.json"),
    "no base": (edited(lambda told: told.pop("base")), "which base the bundle is over"),
    "odd file": (edited(lambda told: told.update(files=["../../etc/passwd"])), "is no file of a bundle"),
    "file gone": (lambda bundle: (bundle / "bundle.safetensors").unlink(), "bundle.safetensors, which"),
    "file cut": (cut, "cut short"),
    "not JSON": (garbled, "valid JSON"),
    "mask gone": (tensors(lambda held: held.__delitem__(MASK)), f"lacks {MASK}"),
    "mask short": (tensors(lambda held: held.update({MASK: torch.zeros(1, dtype=torch.uint8)})), MASK),
    "mask of floats": (tensors(lambda held: held.update({MASK: torch.zeros(4)})), "U8 [4] belongs there"),
    "odd scale": (edited(lambda told: told["members"]["a"].update(scale="1")), "scale of a is not a number"),
    "scale beyond floats": (
        edited(lambda told: told["members"]["a"].update(scale=10**400)), "scale of a is not a number"
    ),
    "odd small file": (edited(lambda told: told["members"]["a"].update(files=["../x"])), "files of a"),
    "other base": (
        edited(lambda told: told["base"].update(structure_sha256="0" * 64)), "base is another model"
    ),
    "base retrained": (
        edited(lambda told: told["base"].update(samples_sha256={"model.safetensors": "0"})),
        "its weights have changed",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    for path in family.iterdir():
        (root / path.name).symlink_to(path)
    shop = Shop(root)
    shop.make(shop.recipe("tall"), "bundle")
    return root / "bundle"


@pytest.fixture
def bundle(whole: Path, shop: Shop) -> Path:
    copy = shop.root / "bundle"
    copy.mkdir()
    for path in whole.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def said(bundle: Path, capsys: pytest.CaptureFixture[str], member: str = "a", *options: str) -> str:
    out = bundle.parent / "out"
    assert main(["materialise", str(bundle), member, str(out), *options]) == 2
    assert not out.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_bundle_is_refused(name: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, sentence = BROKEN[name]
    change(bundle)
    assert sentence in said(bundle, capsys)


def test_an_unknown_member_is_told_the_known_ones(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no member 'maths'; the bundle holds a, b, c." in said(bundle, capsys, "maths")
    assert "write math=0.7,code=0.3" in said(bundle, capsys, "a=lots")
    assert "'a' has two weights" in said(bundle, capsys, "a=0.5,b=1, a=0.25")


def test_a_base_that_is_not_there_is_asked_for(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle.parent / "base").unlink()
    assert "say with --base where it lies" in said(bundle, capsys)
    assert "there is no folder nowhere;" in said(bundle, capsys, "a", "--base", "nowhere")
    error = said(bundle, capsys, "a", "--base", str(bundle.parent / "expert1"))
    assert "is not the file that" in error and "was made over" in error


def test_a_model_is_no_bundle_and_a_bundle_no_model(
    bundle: Path, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is no bundle: it has no bundle.json" in said(shop.root / "base", capsys)
    with pytest.raises(Exception, match="This is a bundle, not a model"):
        shop.make({"sources": ["bundle", "base"], "steps": ["linear"]}, "out")
    with pytest.raises(Exception, match="say which member is meant"):
        shop.make({"base": "base", "sources": [{"adapter": "bundle"}], "steps": ["passthrough"]}, "out")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"base": None}, "base_missing"),
        ({"tokenizer": {"source": "union"}}, "bundle_with_tokenizer"),
        ({"reference": "a"}, "bundle_with_reference"),
        ({"slices": [{"sources": [{"id": "a", "layers": [0, 1]}]}]}, "bundle_with_slices"),
        ({"classes": {"linear": "base", "embed": "base", "head": "base", "norm": "base"}}, "bundle_empty"),
    ],
)
def test_what_no_bundle_can_be_made_of_is_found_in_the_plan(
    shop: Shop, change: dict[str, Any], code: str
) -> None:
    with pytest.raises(PlanRefused) as caught:
        shop.make(shop.recipe("tall", steps=("linear",)) | change, "out")
    assert code in [each.code for each in caught.value.findings]


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ({"kind": "zip"}, "valid are tall, emr, twin, rmm"),
        ({"kind": "emr", "threshold": 0.3}, "threshold is a setting of tall bundles, not of emr"),
        ({"kind": "rmm"}, "needs components"),
        ({"kind": "twin", "base": "inside"}, "holds its own base"),
        ({"kind": "tall", "threshold": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_of_another_kind_are_refused(shop: Shop, result: dict[str, Any], sentence: str) -> None:
    recipe = shop.recipe("tall") | {"result": {"form": "bundle", **result}}
    with pytest.raises(RecipeInvalid) as caught:
        recipe_from(recipe)
    assert sentence in caught.value.findings[0].message


def test_a_member_needs_an_adapter() -> None:
    source = {"id": "a", "model": "base", "member": "a"}
    with pytest.raises(RecipeInvalid, match="member"):
        recipe_from({"sources": [source], "steps": ["passthrough"]})
