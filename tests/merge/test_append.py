"""One more model joins an earlier result, which must be what all together would have given."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.__main__ import main
from merge.append import STATE_FILE, Joining, append_to_folder, appended, obstacle, state_from
from merge.checkpoint.index import index_folder
from merge.errors import AppendRefused, RecipeInvalid
from merge.plan import make_plan
from merge.recipe.recipe import Recipe, canonical, recipe_digest, recipe_from
from merge.run import run
from tests import tiny
from tests.merge import exact
from tests.merge.results.adapters import BUDGET, weights

IDS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for expert, name in enumerate(("base", *IDS)):
        tiny.llama(folder / name, expert=expert, dtype=torch.float32, hidden=16)
    tiny.llama(folder / "stranger", seed=9, dtype=torch.float32, hidden=32)
    return folder


def recipe_of(*ids: str, root: Path, **more: Any) -> Recipe:
    document = {
        "base": str(root / "base"),
        "sources": [{"id": name, "model": str(root / name)} for name in ids],
        "steps": [{"method": "opcm", **more.pop("step", {})}],
        **more,
    }
    return recipe_from(document)


def made(recipe: Recipe, out: Path) -> dict[str, Tensor]:
    names = {"base": recipe.base} | {source.id: source.model for source in recipe.sources}
    models = {key: index_folder(Path(str(name)), str(name)) for key, name in names.items()}
    folders = {key: Path(str(name)) for key, name in names.items()}
    run(make_plan(recipe, models, budget=BUDGET), folders, out, budget_bytes=BUDGET, threads=1)
    return weights(out)


def distance(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> float:
    """The largest relative distance of any tensor's change."""
    assert found.keys() == wanted.keys()
    return max(
        float((found[name] - wanted[name]).norm() / (wanted[name] - base[name]).norm().clamp(min=1e-12))
        for name in wanted
    )


def state_at(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / STATE_FILE).read_text())
    return found


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_step_by_step_is_what_all_together_give(root: Path, tmp_path: Path, alpha: float) -> None:
    step = {"alpha": alpha}
    base = weights(root / "base")
    made(recipe_of("a", "b", root=root, step=step), tmp_path / "2")
    for count, name in ((3, "c"), (4, "d")):
        joining = Joining(str(root / name))
        found = made(append_to_folder(tmp_path / str(count - 1), None, joining), tmp_path / str(count))
        wanted = made(recipe_of(*IDS[:count], root=root, step=step), tmp_path / f"all{count}")
        assert distance(found, wanted, base) < 2e-4, "float32 keeps so much of changes of a fiftieth"
        kept, all_at_once = state_at(tmp_path / str(count)), state_at(tmp_path / f"all{count}")
        assert kept["models"] == all_at_once["models"] == count
        assert kept["settings"] == pytest.approx(all_at_once["settings"], rel=1e-4)


def test_from_a_single_model_on(root: Path, tmp_path: Path) -> None:
    made(recipe_of("a", root=root), tmp_path / "1")
    found = made(append_to_folder(tmp_path / "1", None, Joining(str(root / "b"))), tmp_path / "2")
    wanted = made(recipe_of("a", "b", root=root), tmp_path / "both")
    assert distance(found, wanted, weights(root / "base")) < 2e-4


def test_weights_scales_and_policies_go_on(root: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "step": {"scale": [0.5, 1.5], "alpha": 0.3},
        "overrides": [
            {"match": "*.v_proj.*", "policy": "mean"},
            {"match": "*.k_proj.*", "policy": "base"},
            {"match": "*.layers.0.*", "settings": {"alpha": 0.8}},
        ],
    }
    made(recipe_of("a", "b", root=root, **more), tmp_path / "2")
    joining = Joining(str(root / "c"), weight=0.5)
    found = made(append_to_folder(tmp_path / "2", None, joining), tmp_path / "3")
    document = recipe_of("a", "b", "c", root=root, **{**more, "step": dict(more["step"])}).model_dump(
        mode="json"
    )
    document["sources"][2]["weight"] = 0.5
    base, wanted = weights(root / "base"), made(recipe_from(document), tmp_path / "all")
    assert distance(found, wanted, base) < 2e-4
    name = "model.layers.0.self_attn.v_proj.weight"
    mean = torch.stack([weights(root / each)[name] for each in "abc"]).mean(dim=0)
    assert torch.allclose(found[name], mean, atol=1e-6), "a mean counts the earlier result twice"


def test_a_first_tensor_without_entries_has_nothing_to_go_on_from(tmp_path: Path) -> None:
    exact.family(tmp_path, ("base", "a", "b"), shapes={"a.weight": (0, 8), "b_proj.weight": (8, 6)})
    made(recipe_of("a", "b", root=tmp_path), tmp_path / "out")
    assert state_at(tmp_path / "out")["models"] == 2


def test_in_sixteen_bits_the_rounding_of_every_step_stays(root: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"dtype": {"output": "bfloat16"}}
    made(recipe_of("a", "b", root=root, **more), tmp_path / "2")
    found = made(append_to_folder(tmp_path / "2", None, Joining(str(root / "c"))), tmp_path / "3")
    wanted = made(recipe_of(*IDS[:3], root=root, **more), tmp_path / "all")
    assert 1e-4 < distance(found, wanted, weights(root / "base")) < 0.5


def test_a_copy_of_what_is_there_adds_nothing(root: Path, tmp_path: Path) -> None:
    step = {"alpha": 1.0}
    shutil.copytree(root / "a", tmp_path / "again")
    made(recipe_of("a", root=root, step=step), tmp_path / "1")
    found = made(append_to_folder(tmp_path / "1", None, Joining(str(tmp_path / "again"))), tmp_path / "2")
    name = "model.layers.0.self_attn.q_proj.weight"
    base, one = weights(root / "base")[name], weights(root / "a")[name]
    direction = (found[name] - base).flatten() @ (one - base).flatten()
    assert float(direction / (found[name] - base).norm() / (one - base).norm()) == pytest.approx(1, abs=1e-5)


def test_an_unchanged_model_only_counts(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "base", tmp_path / "still")
    first = made(recipe_of("a", root=root), tmp_path / "1")
    found = made(append_to_folder(tmp_path / "1", None, Joining(str(tmp_path / "still"))), tmp_path / "2")
    base = weights(root / "base")
    wanted = {name: base[name] + (first[name] - base[name]) / 2 for name in base}
    assert distance(found, wanted, base) < 2e-4


def test_the_command_appends_and_appends_again(root: Path, tmp_path: Path, capsys: Any) -> None:
    made(recipe_of("a", "b", root=root), tmp_path / "2")
    assert main(["append", str(tmp_path / "2"), str(root / "c"), str(tmp_path / "3"), "--threads", "1"]) == 0
    more = ["--threads", "1", "--base", str(root / "base"), "--id", "newest", "--weight", "1"]
    assert main(["append", str(tmp_path / "3"), str(root / "d"), str(tmp_path / "4"), *more]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    wanted = made(recipe_of(*IDS, root=root), tmp_path / "all")
    assert distance(weights(tmp_path / "4"), wanted, weights(root / "base")) < 2e-4
    sources = json.loads((tmp_path / "4" / "mergery.json").read_text())["recipe"]["sources"]
    assert [(each["id"], each.get("stands_for", 1)) for each in sources] == [("so_far", 3), ("newest", 1)]


def test_the_command_takes_an_adapter(root: Path, tmp_path: Path) -> None:
    q = "model.layers.0.self_attn.q_proj"
    tiny.lora(tmp_path / "lora", {q: (16, 16)})
    made(recipe_of("a", root=root), tmp_path / "1")
    out = str(tmp_path / "2")
    assert (
        main(["append", str(tmp_path / "1"), str(tmp_path / "lora"), out, "--adapter", "--threads", "1"]) == 0
    )
    assert state_at(tmp_path / "2")["models"] == 2


def refused(capsys: Any, *arguments: Any) -> str:
    assert main(["append", *map(str, arguments)]) == 2
    said: str = capsys.readouterr().err
    return said


def test_what_cannot_be_appended_to_says_why(root: Path, tmp_path: Path, capsys: Any) -> None:
    a, out = root / "a", tmp_path / "out"
    assert "is no result of a merge" in refused(capsys, root / "base", a, out)
    document = recipe_of("a", "b", root=root).model_dump(mode="json")
    linear = recipe_from(document | {"steps": ["task_arithmetic"]})
    made(linear, tmp_path / "linear")
    assert "made by task_arithmetic; only opcm" in refused(capsys, tmp_path / "linear", a, out)
    made(recipe_of("a", "b", root=root), tmp_path / "2")
    assert "is not the base" in refused(capsys, tmp_path / "2", a, out, "--base", root / "stranger")
    assert "--base says where" in refused(capsys, tmp_path / "2", a, out, "--base", tmp_path / "gone")
    assert "so_far" in refused(capsys, tmp_path / "2", a, out, "--id", "so_far")
    assert "but [" in refused(capsys, tmp_path / "2", root / "stranger", out), "shapes that do not fit"
    (tmp_path / "2" / STATE_FILE).unlink()
    assert STATE_FILE in refused(capsys, tmp_path / "2", a, out)
    for lost, step in {"tensor": {"scope": "tensor"}, "nothing": {"scale": [0, 1]}}.items():
        made(recipe_of("a", "b", root=root, step=step), tmp_path / lost)
        assert STATE_FILE in refused(capsys, tmp_path / lost, a, out), lost
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"steps": ["opcm", "norm_repair"]}, "opcm \\+ norm_repair"),
        ({"steps": [{"method": "dare", "density": 0.5}, "opcm"]}, "dare \\+ opcm"),
        ({"result": {"form": "adapter", "rank": 4}}, "adapter"),
        ({"missing": "present"}, "missing: present"),
        ({"tokenizer": {"source": "union"}}, "tokenizer"),
        ({"overrides": [{"match": "*", "settings": {"weight": 2.0}}]}, "weights"),
    ],
)
def test_recipes_that_nothing_can_join_later(root: Path, change: dict[str, Any], why: str) -> None:
    recipe = recipe_from(recipe_of("a", "b", root=root).model_dump(mode="json") | change)
    assert obstacle(recipe) is not None
    state = state_from({"method": "opcm", "models": 2, "settings": {"factor_so_far": 1.0}})
    with pytest.raises(AppendRefused, match=why):
        appended(recipe, state, "x", Joining("c"))


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"method": "opcm", "models": 0, "settings": {}}, {"method": "opcm", "models": True},
     {"method": "opcm", "models": 2, "settings": {"factor_so_far": "1"}}],
)  # fmt: skip
def test_a_state_that_says_nothing_is_refused(document: Any) -> None:
    with pytest.raises(AppendRefused, match=STATE_FILE):
        state_from(document)


def test_a_state_of_another_method_or_without_a_change_is_refused(root: Path) -> None:
    recipe = recipe_of("a", root=root)
    with pytest.raises(AppendRefused, match="magmax"):
        appended(recipe, state_from({"method": "magmax", "models": 1, "settings": {}}), "x", Joining("c"))
    empty = state_from({"method": "opcm", "models": 1, "settings": {"factor_so_far": 0.0}})
    with pytest.raises(AppendRefused, match="does not differ"):
        appended(recipe, empty, "x", Joining("c"))
    good = state_from({"method": "opcm", "models": 1, "settings": {"factor_so_far": 1.0}})
    with pytest.raises(RecipeInvalid, match="so_far"):
        appended(recipe, good, "x", Joining("c", id="so_far"))


def test_what_was_said_of_single_sources_is_left_out(root: Path) -> None:
    document = recipe_of("a", "b", root=root).model_dump(mode="json")
    document["overrides"] = [
        {"match": "*.mlp.*", "source": "a", "settings": {"weight": 2.0}},
        {"match": "model.norm.weight", "policy": "source:b"},
    ]
    document["classes"] = {"embed": "source:a", "head": "base"}
    document["reference"] = "a"
    state = state_from(
        {"method": "opcm", "models": 2, "settings": {"factor_so_far": 1.0, "lengths_so_far": 2.0}}
    )
    found = appended(recipe_from(document), state, "x", Joining("c"))
    assert [(each.match, each.policy) for each in found.overrides] == [("model.norm.weight", "source:so_far")]
    assert found.classes == {"embed": "source:so_far", "head": "base"}
    assert found.reference == "so_far"
    assert found.steps[0].settings == {"factor_so_far": 1.0, "lengths_so_far": 2.0}


def test_standing_for_one_model_is_as_if_nothing_were_said(root: Path) -> None:
    plain = recipe_of("a", "b", root=root)
    document = plain.model_dump(mode="json")
    document["sources"][0]["stands_for"] = 2
    assert recipe_digest(recipe_from(document)) != recipe_digest(plain)
    document["sources"][0]["stands_for"] = 1
    assert recipe_digest(recipe_from(document)) == recipe_digest(plain)
    assert b"stands_for" not in canonical(plain)
