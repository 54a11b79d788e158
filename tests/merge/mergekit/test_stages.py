from typing import Any

import pytest

from merge.errors import MergekitUnsupported, RecipeInvalid
from merge.mergekit.translate import read_recipe
from merge.recipe.recipe import recipe_digest

MULTI = """\
name: gradient-slerp-1
merge_method: slerp
base_model: org/a
models: [{model: org/a}, {model: org/b}]
parameters: {t: [0, 0.5, 1]}
dtype: bfloat16
---
name: Second.One
merge_method: ties
base_model: org/base
models:
  - {model: gradient-slerp-1, parameters: {weight: 0.5, density: 0.4}}
  - {model: org/c, parameters: {weight: 1}}
parameters: {density: 0.2}
dtype: bfloat16
---
merge_method: linear
models:
  - {model: Second.One, parameters: {weight: 1}}
  - {model: gradient-slerp-1, parameters: {weight: 2}}
dtype: float16
"""


def test_named_documents_become_stages_and_the_one_without_a_name_the_result() -> None:
    read = read_recipe(MULTI, "yaml")
    recipe = read.recipe
    assert list(recipe.stages) == ["gradient-slerp-1", "second-one"]
    assert [source.model for source in recipe.sources] == ["stage:second-one", "stage:gradient-slerp-1"]
    assert [source.weight for source in recipe.sources] == [1, 2]
    assert recipe.dtype.output == "float16"
    second = recipe.stages["second-one"]
    assert (second.base, [source.model for source in second.sources]) == (
        "org/base", ["stage:gradient-slerp-1", "org/c"],
    )  # fmt: skip
    assert second.dtype.output == "bfloat16"
    assert any(note.startswith("Document 2 (Second.One): ") for note in read.notes)


def test_each_document_is_translated_as_it_would_be_alone() -> None:
    alone = [read_recipe(text, "yaml").recipe for text in MULTI.split("---\n")]
    together = read_recipe(MULTI, "yaml").recipe
    assert together.stages["gradient-slerp-1"] == alone[0]
    assert together.stages["second-one"] == alone[1].renamed({"m0": "stage:gradient-slerp-1"})


def test_the_printed_translation_reads_back_as_the_same_recipe() -> None:
    read = read_recipe(MULTI, "yaml")
    assert recipe_digest(read_recipe(read.as_yaml(), "yaml").recipe) == recipe_digest(read.recipe)


def test_without_an_unnamed_document_the_last_is_the_result_and_order_does_not_matter() -> None:
    first, second, last = MULTI.split("---\n")
    named = read_recipe("---\n".join([first, second, "name: end\n" + last]), "yaml")
    turned = read_recipe("---\n".join([last, second, first]), "yaml")
    assert recipe_digest(named.recipe) == recipe_digest(turned.recipe)
    assert recipe_digest(named.recipe) == recipe_digest(read_recipe(MULTI, "yaml").recipe)


def test_a_stage_may_be_the_base_and_have_slices() -> None:
    text = """\
name: ground
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
---
merge_method: task_arithmetic
base_model: ground
slices:
  - sources:
      - {model: ground, layer_range: [0, 2]}
      - {model: c, layer_range: [0, 2], parameters: {weight: 0.5}}
"""
    recipe = read_recipe(text, "yaml").recipe
    assert recipe.base == "stage:ground"
    assert [source.model for source in recipe.sources] == ["c"]


def test_the_name_of_a_single_document_is_left_out_with_a_note() -> None:
    read = read_recipe("name: x\nmerge_method: passthrough\nmodels: [{model: a}]", "yaml")
    assert not read.recipe.stages
    assert any("name has no effect" in note for note in read.notes)


LINEAR = "merge_method: linear\nmodels: [{model: MODEL, parameters: {weight: 1}}]\n"


def linear(model: Any, name: str | None = None) -> str:
    return ("" if name is None else f"name: {name}\n") + LINEAR.replace("MODEL", str(model))


@pytest.mark.parametrize(
    ("documents", "pointer", "says"),
    [
        ([linear("x", "a"), linear("a") + "lr: 1\n"], "/1/lr", "Document 2: 'lr' is not"),
        ([linear("x", "a") + "parameters: {wei: 1}\n", linear("a")], "/0/parameters/wei", "Document 1 (a)"),
        ([linear("x", "a"), linear("y", "b"), linear("a")], "/1/name", "(b): no other document uses it"),
        ([linear("x", "a"), linear("x", "a"), linear("a")], "/1/name", "another document has that name"),
        ([linear("x"), linear("y")], "/1/name", "only one document"),
        ([linear("b", "a"), linear("a", "b"), linear("a")], "/0/name", "go in a circle"),
        ([linear("x", "a"), linear("a+lora")], "/1", "a LoRA cannot be put on"),
        ([linear("x", "a"), linear("y+a")], "/1", "cannot be taken for a LoRA"),
        ([linear("x", "[1]"), linear("a")], "/0/name", "name must be text"),
    ],
)  # fmt: skip
def test_refusals_name_the_document_and_the_key(documents: list[str], pointer: str, says: str) -> None:
    with pytest.raises(MergekitUnsupported) as caught:
        read_recipe("---\n".join(documents), "yaml")
    (finding,) = caught.value.findings
    assert finding.pointer == pointer
    assert says in finding.message


def test_too_many_documents_are_refused() -> None:
    with pytest.raises(MergekitUnsupported, match="at most 17 documents"):
        read_recipe("---\n".join(linear("x", f"a{number}") for number in range(18)), "yaml")


def test_recipes_of_ours_are_one_document() -> None:
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(linear("x", "a") + "---\nsources: [a]\nsteps: [linear]\n", "yaml")
    assert caught.value.findings[0].code == "several_documents"
    assert "Document 2" in caught.value.findings[0].message
