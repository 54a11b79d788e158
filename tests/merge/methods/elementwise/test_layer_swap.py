import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge.checkpoint.index import index_folder
from merge.errors import Stopped
from merge.methods.elementwise.layer_swap import best_borders, shares
from merge.plan import make_plan, plan_or_findings
from merge.recipe.recipe import recipe_from
from merge.run import run
from tests import tiny
from tests.merge import exact
from tests.merge.references import tensors_digest
from tests.merge.whole import merge_all

LAYERS = 10
NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(LAYERS)),
    "model.norm.weight",
    "head.weight",
]


def swapped(**settings: object) -> list[float]:
    """The donor's share of every tensor, from models of zeros and of ones."""
    host, donor = torch.zeros(5), torch.ones(5)
    made = merge_all([("layer_swap", settings)], {name: (None, [host, donor]) for name in NAMES})
    return [float(made[name][0]) for name in NAMES]


def test_worked_example_of_the_card() -> None:
    assert shares(4, 1, 1, 1) == [1.0, 0.5, 0.0, 1.0]


def test_the_donor_takes_the_outer_layers_with_embedding_norm_and_head() -> None:
    assert swapped(bottom=2, top=1) == [1, 1, 1, 0.5, 0, 0, 0, 0, 0, 0.5, 1, 1, 1]
    assert swapped(bottom=2, top=0, transition=0) == [1, 1, 1, *[0] * 8, 0, 0]
    assert swapped(bottom=0, top=3, transition=0) == [0, *[0] * 7, 1, 1, 1, 1, 1]


def test_by_default_a_fifth_at_the_bottom_and_a_tenth_at_the_top() -> None:
    assert swapped() == swapped(bottom=2, top=1)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 6, 10])
def test_by_default_outer_tensors_go_with_the_blocks_that_there_are(layers: int) -> None:
    """A tenth of a few layers is none: then head and final norm are the host's, as the layer below them."""
    inner = [f"model.layers.{at}.mlp.up_proj.weight" for at in range(layers)]
    names = ["model.embed_tokens.weight", *inner, "model.norm.weight", "head.weight"]
    host, donor = torch.zeros(5), torch.ones(5)
    made = merge_all([("layer_swap", {})], {name: (None, [host, donor]) for name in names})
    share = [float(made[name][0]) for name in names]
    assert share[0] == float(share[1] == 1)
    assert share[-1] == share[-2] == float(share[-3] == 1)


def test_transitions_go_in_equal_steps() -> None:
    assert shares(12, 2, 2, 3) == [1, 1, 0.75, 0.5, 0.25, 0, 0, 0.25, 0.5, 0.75, 1, 1]


def test_transitions_without_room_are_left_out_the_upper_one_first() -> None:
    assert shares(6, 2, 1, 2) == [1, 1, pytest.approx(2 / 3), pytest.approx(1 / 3), 0, 1]
    assert shares(5, 2, 1, 2) == [1, 1, 0, 0, 1]


def test_all_of_the_donor_or_none_of_it() -> None:
    assert shares(4, 3, 2, 0) == shares(4, 9, 0, 1) == shares(4, 0, 7, 1) == [1.0] * 4
    assert shares(4, 0, 0, 3) == [0.0] * 4


def test_layers_outside_transitions_are_copied_to_the_bit() -> None:
    host, donor = torch.randn(50) * 1e-6, torch.randn(50) * 1e6
    made = merge_all([("layer_swap", {"bottom": 1, "top": 0})], {n: (None, [host, donor]) for n in NAMES})
    assert torch.equal(made[NAMES[1]], donor)
    assert torch.equal(made[NAMES[5]], host)


def test_towers_are_cut_each_by_its_own_length() -> None:
    host, donor = torch.zeros(5), torch.ones(5)
    names = [f"{tower}.layers.{at}.w" for tower, n in (("vision", 4), ("text", 8)) for at in range(n)]
    settings = {"bottom": 0, "top": 1, "transition": 0}
    made = merge_all([("layer_swap", settings)], {name: (None, [host, donor]) for name in names})
    assert [name for name in names if made[name][0] == 1] == ["vision.layers.3.w", "text.layers.7.w"]


def test_auto_finds_the_layers_that_the_donor_changed_most() -> None:
    base = torch.randn(64)
    tensors = {}
    for name in NAMES:
        layer = int(name.split(".")[2]) if "layers" in name else 0
        far = 1.0 if layer < 3 or layer >= 8 else 0.1
        tensors[name] = (base, [base + (1.1 - far) * torch.randn(64), base + far * torch.randn(64)])
    made = merge_all([("layer_swap", {"borders": "auto", "transition": 0})], tensors)
    from_donor = [bool(torch.equal(made[name], tensors[name][1][1])) for name in NAMES]
    assert from_donor == [True, *[True] * 3, *[False] * 5, *[True] * 2, True, True]


def test_auto_takes_nothing_where_no_border_tells_the_models_apart() -> None:
    assert best_borders([0.5] * 6) == (0, 0)
    assert best_borders([0.2, 0.8, 0.8, 0.2]) != (1, 1), "the donor changed the middle"
    assert best_borders([0.9, 0.8, 0.1, 0.2, 0.1, 0.7]) == (2, 1)
    assert best_borders([0.7]) == (0, 0)


def test_auto_over_models_that_equal_their_base_gives_the_base() -> None:
    base = torch.randn(5)
    made = merge_all([("layer_swap", {"borders": "auto"})], {n: (base, [base, base]) for n in NAMES})
    assert all(torch.equal(tensor, base) for tensor in made.values())


def _is_over(calls: Iterator[int]) -> bool:
    return next(calls, None) is None


def test_a_stopped_merge_goes_on_with_the_borders_it_had_found(tmp_path: Path) -> None:
    folders = exact.family(tmp_path, ("base", "a", "b"))
    document = {
        "base": "base",
        "sources": [{"id": name, "model": name} for name in "ab"],
        "steps": [{"method": "layer_swap", "borders": "auto"}],
        "shard_bytes": 100_000,
    }
    plan = make_plan(recipe_from(document), exact.indices(folders), budget=1 << 30)
    run(plan, folders, tmp_path / "straight", budget_bytes=1 << 30, threads=1)
    out, stops = tmp_path / "halting", 0
    for limit in itertools.count(4, 4):
        over = partial(_is_over, iter(range(limit)))
        try:
            run(plan, folders, out, budget_bytes=1 << 30, threads=1, should_stop=over)
            break
        except Stopped:
            stops += 1
    assert stops > 1
    assert tensors_digest(out) == tensors_digest(tmp_path / "straight")


def test_in_a_whole_merge_head_and_embedding_follow_their_blocks(tmp_path: Path) -> None:
    folders = exact.family(tmp_path, ("a", "b"))
    document = {
        "sources": [{"id": name, "model": name} for name in "ab"],
        "steps": [{"method": "layer_swap", "bottom": 0, "top": 1, "transition": 0}],
    }
    plan = make_plan(recipe_from(document), exact.indices(folders), budget=1 << 30)
    run(plan, folders, tmp_path / "out", budget_bytes=1 << 30, threads=1)
    made, host, donor = (
        {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}
        for folder in (tmp_path / "out", folders["a"], folders["b"])
    )
    owners = {name: "b" if torch.equal(made[name], donor[name]) else "a" for name in made}
    assert all(torch.equal(made[name], host[name]) for name, owner in owners.items() if owner == "a")
    upper = {name for name in made if name.startswith(("lm_head", "model.norm", "model.layers.1"))}
    assert {name for name, owner in owners.items() if owner == "b"} == upper


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"bottom": 2, "top": 1, "transition": 2},
            "both transitions are left out: bottom 2 and top 1 leave 1",
        ),
        ({"bottom": 1, "top": 1}, "the transition beside top is left out: bottom 1 and top 1 leave 2 of 4"),
        ({"bottom": 3, "top": 2}, "bottom 3 and top 2 leave none of the 4 layers between them"),
        ({"bottom": 0, "top": 1, "transition": 3}, "the transition beside top is left out"),
    ],
)
def test_the_plan_tells_of_transitions_and_blocks_that_have_no_room(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    (told,) = without_room(tmp_path, settings)
    assert told.message.startswith(f"layer_swap: {says}") and told.pointer == "/steps/0"
    assert told.severity == "warning"


@pytest.mark.parametrize("settings", [{"bottom": 1, "top": 0}, {"bottom": 1, "top": 1, "transition": 0}, {}])
def test_what_fits_is_not_told_of(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert without_room(tmp_path, settings) == []


def test_the_plan_tells_where_nothing_of_the_donor_is_taken(tmp_path: Path) -> None:
    """A fifth and a tenth of two layers are none."""
    (told,) = without_room(tmp_path, {}, layers=2)
    assert told.message.startswith("layer_swap: bottom 0 and top 0 take none of the 2 layers")


def without_room(folder: Path, settings: dict[str, Any], layers: int = 4) -> list[Any]:
    for name in "ab":
        tiny.llama(folder / name, expert=ord(name), layers=layers)
    sources = [{"id": name, "model": name} for name in "ab"]
    document = {"sources": sources, "steps": [{"method": "layer_swap", **settings}]}
    models = {name: index_folder(folder / name, name) for name in "ab"}
    plan = make_plan(recipe_from(document), models, budget=1 << 30)
    return [finding for finding in plan.findings if finding.code == "layers_without_room"]


def test_auto_without_a_base_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    models = exact.indices(exact.family(tmp_path, ("a", "b")))
    sources = [{"id": name, "model": name} for name in "ab"]
    step = {"method": "layer_swap", "borders": "auto"}
    plan, findings = plan_or_findings(
        recipe_from({"sources": sources, "steps": [step]}), models, budget=1 << 30
    )
    assert plan is None
    assert [(f.code, f.pointer) for f in findings] == [("base_missing", "/steps/0/borders")]
    plan, findings = plan_or_findings(
        recipe_from({"sources": sources, "steps": ["layer_swap"]}), models, budget=1 << 30
    )
    assert plan is not None


def test_auto_must_hold_for_all_tensors(tmp_path: Path) -> None:
    models = exact.indices(exact.family(tmp_path, ("base", "a", "b")))
    document = {
        "base": "base",
        "sources": [{"id": name, "model": name} for name in "ab"],
        "steps": ["layer_swap"],
        "overrides": [{"match": "class:linear", "settings": {"borders": "auto"}}],
    }
    plan, findings = plan_or_findings(recipe_from(document), models, budget=1 << 30)
    assert plan is None
    assert "global_setting_varies" in {finding.code for finding in findings}
