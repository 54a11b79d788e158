"""Which bytes a plan reads, from its inputs alone."""

from pathlib import Path
from typing import Any

from merge.checkpoint.adapter_names import WEIGHT_FILE
from merge.checkpoint.index import attach, index_adapter, index_folder, read_folder
from merge.plan import Plan, make_plan
from merge.ranges import joined, length, needed_ranges, order_of
from merge.recipe.recipe import recipe_from
from tests import tiny

LORA = {"model.layers.0.self_attn.q_proj": (16, 16), "model.layers.1.self_attn.q_proj": (16, 16)}


def planned(root: Path, recipe: dict[str, Any], *names: str, lora: str | None = None) -> Plan:
    models = {name: index_folder(root / name, name) for name in names}
    if lora is not None:
        adapter = index_adapter(lora, *read_folder(root / lora, lora, adapter=True))
        models[names[-1]] = attach(models[names[-1]], adapter)
    return make_plan(recipe_from(recipe), models, budget=1 << 30)


def test_a_merge_of_everything_reads_every_tensor_and_no_header(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "a")):
        tiny.llama(tmp_path / name, expert=number, shards=2)
    recipe = {"base": "base", "sources": [{"id": "a", "model": "a"}], "steps": ["task_arithmetic"]}
    plan = planned(tmp_path, recipe, "base", "a")
    ranges = needed_ranges(plan)
    for key in ("base", "a"):
        index = plan.models[key]
        assert set(ranges[key]) == set(index.shards)
        assert sum(map(length, ranges[key].values())) == sum(info.nbytes for info in index.tensors.values())
        assert all(spans[0][0] > 8 and len(spans) == 1 for spans in ranges[key].values())


def test_what_no_tensor_of_the_result_comes_from_is_not_read(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "a")):
        tiny.llama(tmp_path / name, expert=number)
    recipe = {
        "base": "base",
        "sources": [{"id": "a", "model": "a"}],
        "steps": ["task_arithmetic"],
        "classes": dict.fromkeys(("embed", "head", "norm", "linear"), "base"),
        "overrides": [{"match": "model.layers.1.*", "policy": "source:a"}],
    }
    plan = planned(tmp_path, recipe, "base", "a")
    taken = [info for name, info in plan.models["a"].tensors.items() if name.startswith("model.layers.1.")]
    (spans,) = needed_ranges(plan)["a"].values()
    assert length(spans) == sum(info.nbytes for info in taken)
    assert all(any(begin <= info.begin and info.end <= end for begin, end in spans) for info in taken)
    (kept,) = needed_ranges(plan)["base"].values()
    assert not any(
        begin < info.end and info.begin < end
        for begin, end in kept
        for info in (plan.models["base"].tensors[each.name] for each in taken)
    )


def test_of_an_adapter_only_the_factors_of_tensors_that_are_read(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "a")
    tiny.llama(tmp_path / "b")
    tiny.lora(tmp_path / "lora", LORA)
    recipe = {
        "sources": [{"id": "b", "model": "b"}, {"id": "a", "model": "a", "adapter": "lora"}],
        "steps": ["linear"],
        "overrides": [{"match": "model.layers.1.*", "policy": "source:b"}],
    }
    plan = planned(tmp_path, recipe, "b", "a", lora="lora")
    adapter = plan.models["a"].adapter
    assert adapter is not None
    read = [pair for name, pair in adapter.pairs.items() if name.startswith("model.layers.0.")]
    spans = needed_ranges(plan)["a+adapter"][WEIGHT_FILE]
    assert length(spans) == sum(pair.a.nbytes + pair.b.nbytes for pair in read) > 0


def test_files_come_in_the_order_in_which_the_result_needs_them(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "a")):
        tiny.llama(tmp_path / name, expert=number, shards=3)
    recipe = {"base": "base", "sources": [{"id": "a", "model": "a"}], "steps": ["task_arithmetic"]}
    plan = planned(tmp_path, recipe, "base", "a")
    order = order_of(needed_ranges(plan), plan)
    first = plan.outputs[0].inputs
    assert order[:2] == [(each.model, plan.models[each.model].tensors[each.tensor].file) for each in first]
    assert sorted(order) == sorted((key, file) for key in ("base", "a") for file in plan.models[key].shards)


def test_ranges_join_where_they_touch_and_across_small_gaps() -> None:
    spans = [(10, 20), (0, 5), (5, 7), (30, 30), (24, 28)]
    assert joined(spans) == ((0, 7), (10, 20), (24, 28))
    assert joined(spans, gap=4) == ((0, 28),)
    assert length(joined(spans)) == 21
