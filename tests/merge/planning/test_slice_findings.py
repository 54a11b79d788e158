"""What is wrong with slices is told with the slice, the field or the tensor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.errors import RecipeInvalid
from merge.recipe.recipe import recipe_from
from tests.merge import exact
from tests.merge.arch import zoo
from tests.merge.planning.slices import GROWN, PER_LAYER, STACK, document, errors, part, planned, shapes


@pytest.mark.parametrize(
    ("slices", "code", "pointer", "says"),
    [
        ([part(("a", 0, 2)), part(("b", 2, 5))], "layers_out_of_range", "/slices/1/sources/0/layers",
         "b has 4 layers"),
        ([part(("a", 0, 2), ("b", 1, 4))], "layers_differ", "/slices/0/sources/1/layers", "b gives 3"),
        ([part(("deep", 4, 6))], "layers_out_of_range", "/slices/0/base", "base has 4 layers"),
        ([part(("a", 0, 2), base_layers=[0, 3])], "layers_differ", "/slices/0/base_layers", "base gives 3"),
    ],
)  # fmt: skip
def test_a_bad_range_is_told_with_its_slice_and_field(
    folders: Mapping[str, Path], slices: list[dict[str, Any]], code: str, pointer: str, says: str
) -> None:
    found = errors(folders, document(slices, ["task_arithmetic"]))
    assert [(each.code, each.pointer) for each in found] == [(code, pointer)]
    assert says in found[0].message


@pytest.mark.parametrize(
    ("slices", "pointer", "says"),
    [
        ([part(("zzz", 0, 2))], "/slices/0/sources/0/id", "no source 'zzz'"),
        ([part(("a", 0, 2), base="zzz")], "/slices/0/base", "no source 'zzz'"),
        ([part(("a", 3, 3))], "/slices/0/sources/0/layers", "[first, end]"),
        ([{"sources": [{"id": "a", "layers": [0]}]}], "/slices/0/sources/0/layers", "[first, end]"),
        ([{"sources": [{"id": "a"}]}, part(("a", 0, 1))], "/slices/0/sources/0/layers", "needs layers"),
        ([part(("a", 0, 2), layer_range=3)], "/slices/0/layer_range", "did you mean"),
        ([part(("a", 0, 2), overrides=[{"match": "x", "source": "c", "policy": "mean"}])],
         "/slices/0/overrides/0/source", "no source 'c'"),
    ],
)  # fmt: skip
def test_a_malformed_slice_is_refused_where_it_stands(
    slices: list[dict[str, Any]], pointer: str, says: str
) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        recipe_from(document(slices))
    assert caught.value.findings[0].pointer == pointer
    assert says in caught.value.findings[0].message


def test_every_slice_must_suit_the_method(folders: Mapping[str, Path]) -> None:
    found = errors(
        folders, document([part(("a", 0, 2), ("b", 0, 2)), part(("a", 2, 4))], [{"method": "slerp"}])
    )
    assert [(each.code, each.pointer) for each in found] == [("source_count", "/slices/1/sources")]


def test_a_source_in_no_slice_is_remarked(folders: Mapping[str, Path]) -> None:
    plan = planned(folders, document(STACK))
    assert [f.model for f in plan.findings if f.code == "source_unused"] == ["deep"]


def test_a_policy_that_names_a_model_of_another_slice_is_refused(folders: Mapping[str, Path]) -> None:
    rules = [{"match": "model.layers.*", "policy": "source:b"}]
    found = errors(folders, document([part(("a", 0, 1)), part(("b", 1, 2))], overrides=rules))
    assert {each.tensor for each in found} == {f"model.layers.0.{name}" for name in PER_LAYER}
    assert {each.code for each in found} == {"policy_model_absent"}


def test_a_tensor_that_one_layer_has_more_than_the_others_is_told(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    extra = {"model.layers.3.self_attn.q_norm.weight": torch.ones(4, dtype=torch.bfloat16)}
    odd = {
        **folders,
        "b": exact.write(tmp_path / "b", "b", shapes(4), extra=extra, config={"num_hidden_layers": 4}),
    }
    found = errors(odd, document([part(("a", 0, 2), ("b", 2, 4))], ["linear"]))
    assert [(each.code, each.model, each.tensor) for each in found] == [
        ("extra_tensor", "b", "model.layers.3.self_attn.q_norm.weight")
    ]


def test_a_config_that_counts_no_layers_is_told_before_anything_is_read(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    silent = {**folders, "a": exact.write(tmp_path / "a", "a", shapes(4), config={"layer_types": []})}
    assert [each.code for each in errors(silent, document(STACK))] == ["layer_count_unstated"]


def test_slices_of_a_model_with_two_towers_must_say_which(tmp_path: Path) -> None:
    zoo.save("t5", 1, tmp_path / "a")
    found = {"sources": [{"id": "a", "model": "a"}], "steps": ["passthrough"], "slices": GROWN}
    (told,) = errors({"a": tmp_path / "a"}, found)
    assert (told.code, told.pointer) == ("layers_unclear", "/slices")
    assert "decoder.block, encoder.block" in told.message


def test_a_module_that_no_tensor_belongs_to_is_refused(folders: Mapping[str, Path]) -> None:
    modules = {"visual": {"tensors": ["visual.*"], "slices": [{"sources": [{"id": "a"}]}]}}
    found = {"sources": [{"id": "a", "model": "a"}], "steps": ["passthrough"], "modules": modules}
    assert [(each.code, each.pointer) for each in errors(folders, found)] == [
        ("module_empty", "/modules/visual/tensors")
    ]
