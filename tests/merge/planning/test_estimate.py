"""What a plan says that a merge will take, by the shapes of its tensors alone."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import pytest

from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import ModelIndex
from merge.plan import Plan, make_plan
from merge.recipe.recipe import recipe_from

STACKS = "model.layers.{}.mlp.experts.down_proj"


def plan_of(models: Mapping[str, ModelIndex], step: dict[str, Any], **more: Any) -> Plan:
    sources = [{"id": name, "model": name} for name in "abc"]
    recipe = recipe_from({"base": "base", "sources": sources, "steps": [step], **more})
    return make_plan(recipe, models, budget=8 << 30)


def of_shape(
    shape: tuple[int, ...], name: str = "model.layers.{}.mlp.up_proj.weight", count: int = 8
) -> Mapping[str, ModelIndex]:
    """A base and three models of so many bf16 tensors of one shape."""
    size = 2 * prod(shape)
    tensors = {
        each: TensorInfo(each, "BF16", shape, "model.safetensors", size * at, size * (at + 1))
        for at, each in enumerate(map(name.format, range(count)))
    }
    files = {"model.safetensors": count * size}
    return {key: ModelIndex(key, tensors, {}, None, files, key) for key in ("base", "a", "b", "c")}


@pytest.mark.parametrize(
    ("method", "iterating"), [("doge", {}), ("wudi", {"solver": "adam"}), ("optmerge", {"solver": "iterate"})]
)
def test_steps_of_an_iteration_take_time(method: str, iterating: dict[str, Any]) -> None:
    """500 steps on eight matrices of 2,048 rows and columns."""
    models = of_shape((2048, 2048))
    recipes = [{"method": method, **iterating, "steps": steps} for steps in (0, 500)]
    none, many = (plan_of(models, step).estimate.seconds for step in recipes)
    assert many > 60 + none
    assert plan_of(models, {"method": "tsv_m"}).estimate.seconds == pytest.approx(none, rel=0.1)


@pytest.mark.parametrize(("method", "shape"), [("wudi", (2048, 8192)), ("knots", (8192, 2048))])
def test_what_is_decomposed_of_all_sources_as_one_takes_longer(method: str, shape: tuple[int, int]) -> None:
    """A side of 6,144 in place of 2,048."""
    each, one = (plan_of(of_shape(shape), {"method": name}).estimate.seconds for name in ("tsv_m", method))
    assert 2.5 * each < one < 7 * each
    each, one = (
        plan_of(of_shape(shape[::-1]), {"method": name}).estimate.seconds for name in ("tsv_m", method)
    )
    assert one == pytest.approx(each, rel=0.1)


def test_decomposing_dense_changes_takes_time() -> None:
    adapter = {"form": "adapter", "rank": 64}
    models = of_shape((4096, 4096))
    plain, made = (
        plan_of(models, {"method": "linear"}, **more).estimate.seconds for more in ({}, {"result": adapter})
    )
    assert plain + 4 < made < plain + 10, "2 x 6 passes x 80 directions for each of 134 million entries"


def test_methods_on_matrices_hold_one_of_a_stack_of_experts_at_a_time() -> None:
    stack, matrix = (
        plan_of(of_shape(shape, STACKS), {"method": "tsv_m"}).demand
        for shape in ((16, 512, 512), (2048, 2048))
    )
    assert stack.whole == matrix.whole
    assert 16 * (stack.workspace - 1) < matrix.workspace <= 16 * stack.workspace


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "iso_cts", "knots", "opcm", "optmerge", "wudi", "doge"])
def test_methods_on_matrices_hold_less_of_wide_and_tall_ones(method: str) -> None:
    """Most of what they hold are products and directions of the shorter side."""
    square, wide, tall = (
        plan_of(of_shape(shape), {"method": method}).demand
        for shape in ((1024, 1024), (64, 16_384), (16_384, 64))
    )
    assert wide.whole == square.whole
    assert max(wide.workspace, tall.workspace) < square.workspace


@pytest.mark.parametrize(
    ("step", "lines"),
    [
        ({"method": "widen"}, 16 * 512 * (4 + 7 * 2)),
        ({"method": "nuslerp"}, 0),
        ({"method": "nuslerp", "along": "columns"}, 16 * 512 * 16),
        ({"method": "arcee_fusion"}, 16 * 512 * 8),
    ],
    ids=["widen", "nuslerp", "nuslerp along columns", "arcee_fusion"],
)
def test_what_is_measured_of_a_stack_of_experts_is_of_its_lines(step: dict[str, Any], lines: int) -> None:
    """Each matrix has rows and columns of its own."""
    names = "ab" if step["method"] != "arcee_fusion" else "a"
    models = of_shape((16, 512, 512), STACKS)
    sources = [{"id": name, "model": name} for name in names]
    assert plan_of(models, step, sources=sources).demand.lines == 8 * lines


def test_what_is_known_of_many_tensors_is_held() -> None:
    few, many = (plan_of(of_shape((4,), count=count), {"method": "ties"}) for count in (500, 5_000))
    assert few.demand.kept == 0
    grown = many.estimate.peak_memory_bytes - few.estimate.peak_memory_bytes
    assert grown == many.demand.kept == (5 * 5_000 - 4096) << 10


def test_what_files_hold_is_added_up_once_however_many_there_are() -> None:
    """Of a mixture with 37,000 tensors in 118 files that took longer than all else of its plan's estimate."""
    looks: list[int] = []

    class Looked(dict[str, TensorInfo]):
        def values(self) -> Any:
            looks.append(1)
            return super().values()

    def looks_at(files: int) -> int:
        models = {
            key: replace(index, tensors=Looked(_spread(index.tensors, files)))
            for key, index in of_shape((4, 4)).items()
        }
        looks.clear()
        plan_of(models, {"method": "linear"})
        return len(looks)

    assert looks_at(8) == looks_at(2) > 0


def _spread(tensors: Mapping[str, TensorInfo], files: int) -> dict[str, TensorInfo]:
    return {
        name: replace(info, file=f"{at % files}.safetensors")
        for at, (name, info) in enumerate(tensors.items())
    }
