"""Statistics measured on data: what a plan says of them, how they reach methods, and what is refused."""

import dataclasses
import gc
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge.catalog import catalogue
from merge.contract.groups import Site, TensorGroup
from merge.contract.informed import Statistic
from merge.contract.method import registered
from merge.errors import (
    MethodMalformed,
    NotFinite,
    OutputExists,
    PlanRefused,
    RecipeInvalid,
    StatisticsInvalid,
    StatisticsMissing,
    StatisticsUnfit,
    Stopped,
)
from merge.learn.statistics import FILE
from merge.methods import load
from merge.plan import Plan, make_plan
from merge.planning.measuring import of_catalogue
from merge.recipe.recipe import canonical, recipe_digest, recipe_from
from merge.report import ShardDone
from merge.run import run
from merge.running.statistics import Part, spread
from tests import tiny
from tests.merge import exact, informed
from tests.merge.references import tensors_digest

BUDGET = 256 << 20
AIM = [{"method": "task_arithmetic"}, {"method": "aim", "omega": 0.2}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return exact.family(tmp_path_factory.mktemp("family"))


def document(steps: list[Any], **more: Any) -> dict[str, Any]:
    sources = [{"id": name, "model": name} for name in "ab"]
    return {"base": "base", "sources": sources, "steps": steps, "shard_bytes": 150_000, **more}


def planned(folders: Mapping[str, Path], steps: list[Any], **more: Any) -> Plan:
    recipe = recipe_from(document(steps, **more))
    return make_plan(recipe, exact.indices(folders), budget=BUDGET, measured=informed.of_all(folders))


def merged(
    folders: Mapping[str, Path], plan: Plan, out: Path, known: Mapping[str, Path], **more: Any
) -> None:
    run(plan, folders, out, budget_bytes=BUDGET, threads=2, statistics=known, **more)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each for path in folder.glob("*.safetensors") for name, each in load_file(path).items()}


def test_the_plan_names_the_kinds_that_each_model_needs(folders: Mapping[str, Path]) -> None:
    assert planned(folders, ["task_arithmetic"]).statistics.needed == {}
    assert planned(folders, AIM).statistics.needed == {"base": ("mean_abs_input",)}
    both = planned(folders, [{"method": "activation_trim"}, {"method": "regmean"}, "aim"])
    assert both.statistics.needed == {
        "a": ("gram", "input_second_moment"),
        "b": ("gram", "input_second_moment"),
        "base": ("mean_abs_input",),
    }
    assert both.summary()["statistics"]["passes"] == 0


def test_the_exact_fisher_is_planned_for_classifiers_alone(tmp_path: Path) -> None:
    paths = tiny.family(tmp_path, 2)
    steps = [{"method": "fisher", "estimator": "exact"}]
    with pytest.raises(PlanRefused, match="take estimator sampled") as refused:
        make_plan(recipe_from(document(steps)), indices_of(paths), budget=BUDGET)
    assert {(f.code, f.model) for f in refused.value.findings} == {
        ("statistics_not_runnable", "a"),
        ("statistics_not_runnable", "b"),
    }
    for path in paths:
        config = json.loads((path / "config.json").read_text())
        config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 5}
        (path / "config.json").write_text(json.dumps(config))
    exact_plan, drawn = (
        make_plan(
            recipe_from(document([{"method": "fisher", "estimator": each}])), indices_of(paths), budget=BUDGET
        )
        for each in ("exact", "sampled")
    )
    assert exact_plan.statistics.needed == {"a": ("fisher_exact",), "b": ("fisher_exact",)}
    assert 4 < exact_plan.statistics.seconds / drawn.statistics.seconds < 5.1, "a pass for each label"


def test_a_model_that_cannot_be_run_by_blocks_and_does_not_fit_is_refused_by_the_plan(tmp_path: Path) -> None:
    paths = tiny.family(tmp_path, 2)
    budget = 160 << 20
    for model, how in (("llama", None), ("albert", "Running base at once takes")):
        for path in paths:
            config = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps({**config, "model_type": model}))
        indices = indices_of(paths)
        for index in indices.values():
            head = index.tensors["lm_head.weight"]
            index.tensors["lm_head.weight"] = dataclasses.replace(head, shape=(1, 60_000_000))
        found = problems(recipe_from(document(AIM)), indices, budget)
        assert len(found) == (how is not None)
        assert how is None or found[0].startswith(how)


def problems(recipe: Any, indices: Any, budget: int) -> list[str]:
    """What a plan says against running models in so much memory."""
    try:
        make_plan(recipe, indices, budget=budget)
    except PlanRefused as refused:
        return [each.message for each in refused.findings if each.message.startswith("Running")]
    return []


def indices_of(paths: list[Path]) -> dict[str, Any]:
    return exact.indices(dict(zip(("base", "a", "b"), paths, strict=True)))


def test_channels_are_let_go_when_their_tensor_is_written(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    plan, held = planned(folders, AIM), list[int]()

    def look(_: ShardDone) -> None:
        parts = [each for each in gc.get_objects() if isinstance(each, Part)]
        held.append(sum(part._channels is not None for part in parts))

    merged(folders, plan, tmp_path / "out", informed.folders_for(plan, tmp_path), on_shard=look)
    assert len(held) > 1 and not any(held)


def test_what_is_not_measured_yet_costs_time_and_room(tmp_path: Path) -> None:
    paths = tiny.family(tmp_path, 2)
    indices, recipe = indices_of(paths), recipe_from(document(AIM))
    ready = make_plan(recipe, indices, budget=BUDGET, measured=("base",))
    fresh = make_plan(recipe, indices, budget=BUDGET)
    assert (ready.statistics.missing, fresh.statistics.missing) == ((), ("base",))
    assert fresh.estimate.seconds > ready.estimate.seconds
    assert fresh.estimate.disk_bytes > ready.estimate.disk_bytes
    assert fresh.statistics.tokens == 256 * 512
    assert fresh.digest == ready.digest, "what is at hand does not change the result"


def test_models_that_cannot_be_run_are_refused_by_the_plan(folders: Mapping[str, Path]) -> None:
    with pytest.raises(PlanRefused) as refused:
        make_plan(recipe_from(document(AIM)), exact.indices(folders), budget=BUDGET)
    assert {f.code for f in refused.value.findings} == {"statistics_no_tokenizer"}
    assert {f.model for f in refused.value.findings} == {"base"}
    pixels = {"by_source": {"base": {"path": "pictures"}}}
    made = make_plan(recipe_from(document(AIM, calibration=pixels)), exact.indices(folders), budget=BUDGET)
    assert made.statistics.missing == ("base",)


def test_a_config_that_names_no_architecture_cannot_be_run(tmp_path: Path) -> None:
    paths = exact.family(tmp_path)
    for path in paths.values():
        (path / "config.json").write_text("{}")
    with pytest.raises(PlanRefused, match="no config that names its architecture"):
        make_plan(recipe_from(document(AIM)), exact.indices(paths), budget=BUDGET)


def test_calibration_counts_only_where_something_is_measured() -> None:
    other = {"calibration": {"tokens": 64}}
    plain, informed_ = document(["ties"]), document(AIM)
    assert recipe_digest(recipe_from(plain)) == recipe_digest(recipe_from(plain | other))
    assert b"calibration" not in canonical(recipe_from(plain | other))
    assert recipe_digest(recipe_from(informed_)) != recipe_digest(recipe_from(informed_ | other))


@pytest.mark.parametrize(
    ("calibration", "code", "pointer"),
    [
        ({"data": "defalt"}, "field_invalid", "/calibration/data"),
        ({"data": {"hub": "org/texts"}}, "field_invalid", "/calibration/data"),
        ({"data": {"path": "a.txt", "dataset": "ds_1"}}, "field_invalid", "/calibration/data"),
        ({"data": {"pth": "a.txt"}}, "unknown_field", "/calibration/data/pth"),
        ({"by_source": {"c": "default"}}, "unknown_source", "/calibration/by_source/c"),
        ({"tokens": 1}, "field_invalid", "/calibration/tokens"),
        ({"documents": 0}, "field_invalid", "/calibration/documents"),
        ({"rule": "papr"}, "field_invalid", "/calibration/rule"),
    ],
)
def test_a_wrong_calibration_is_refused_by_its_field(calibration: Any, code: str, pointer: str) -> None:
    with pytest.raises(RecipeInvalid) as refused:
        recipe_from(document(AIM, calibration=calibration))
    assert (code, pointer) in {(f.code, f.pointer) for f in refused.value.findings}


def test_a_run_without_them_says_what_is_missing(folders: Mapping[str, Path], tmp_path: Path) -> None:
    plan = planned(folders, AIM)
    with pytest.raises(StatisticsMissing, match=r"base are needed \(mean_abs_input\)"):
        merged(folders, plan, tmp_path / "out", {})
    with pytest.raises(StatisticsInvalid):
        merged(folders, plan, tmp_path / "out", {"base": tmp_path})
    other = informed.write(tmp_path / "other", {"gram/x": torch.ones(1, 1)})
    with pytest.raises(StatisticsMissing, match="mean_abs_input of base"):
        merged(folders, plan, tmp_path / "out", {"base": other})


def test_statistics_of_another_model_or_not_finite_are_refused(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    plan, name = planned(folders, AIM), "mean_abs_input/model.layers.1.mlp.up_proj.weight"
    unfit = informed.write(tmp_path / "unfit", {name: torch.ones(7)})
    with pytest.raises(StatisticsUnfit, match="up_proj"):
        merged(folders, plan, tmp_path / "out", {"base": unfit})
    values = torch.ones(128)
    values[3] = float("nan")
    bad = informed.write(tmp_path / "bad", {name: values})
    with pytest.raises(NotFinite, match=r"layers\.1\.mlp\.up_proj"):
        merged(folders, plan, tmp_path / "out", {"base": bad})


def test_aim_through_a_whole_run_is_the_formula(folders: Mapping[str, Path], tmp_path: Path) -> None:
    known = informed.folders_for(planned(folders, AIM), tmp_path)
    merged(folders, planned(folders, AIM[:1]), tmp_path / "plain", {})
    merged(folders, planned(folders, AIM, dtype={"output": "float32"}), tmp_path / "held", known)
    base, held = tensors(folders["base"]), tensors(tmp_path / "held")
    sources = [tensors(folders[name]) for name in "ab"]
    stored = load_file(known["base"] / FILE)
    for name, start in base.items():
        change = sum(source[name].double() - start.double() for source in sources)
        activity = stored.get(f"mean_abs_input/{name}", torch.zeros(1)).double()
        factor = 1 - 0.8 * activity / activity.max().clamp(min=1e-300)
        wanted = start.double() + change * factor
        assert torch.allclose(held[name].double(), wanted, atol=1e-6), name


def test_other_statistics_start_the_merge_anew(folders: Mapping[str, Path], tmp_path: Path) -> None:
    plan, out = planned(folders, AIM), tmp_path / "out"
    known = informed.folders_for(plan, tmp_path)
    shapes = {name: info.shape for name, info in plan.models["base"].tensors.items()}
    others = {"base": informed.write(tmp_path / "others", informed.synthetic("other", shapes))}
    merged(folders, plan, tmp_path / "straight", others)
    calls = itertools.count()
    with pytest.raises(Stopped):
        merged(folders, plan, out, known, should_stop=lambda: next(calls) > 5)
    assert list((tmp_path / "out.partial").glob("*.safetensors"))
    merged(folders, plan, out, others)
    assert tensors_digest(out) == tensors_digest(tmp_path / "straight")
    manifest = json.loads((out / "mergery.json").read_text())
    assert manifest["inputs"]["base"]["statistics"]["digest"] == "others"
    merged(folders, plan, out, others)
    with pytest.raises(OutputExists):
        merged(folders, plan, out, known)


@pytest.mark.parametrize("shape", [(7,), (5, 4), (3, 2, 4), (2, 3, 2, 2)])
def test_channels_are_lined_up_with_any_span_along_any_axis(shape: tuple[int, ...]) -> None:
    total = torch.Size(shape).numel()
    for axis in range(len(shape)):
        values = torch.arange(1.0, shape[axis] + 1)
        view = [1] * len(shape)
        view[axis] = -1
        whole = values.view(view).expand(shape).reshape(-1)
        stacked = torch.rand(shape[0], shape[axis])
        wide = stacked if axis else None
        for first, count in itertools.product(range(total), (1, 2, 5, total)):
            count = min(count, total - first)
            assert torch.equal(spread(values, axis, shape, first, count), whole[first : first + count])
            if wide is not None:
                view[0] = shape[0]
                both = wide.view(view).expand(shape).reshape(-1)[first : first + count]
                assert torch.equal(spread(wide, axis, shape, first, count), both)


def test_channels_along_the_rows_are_lined_up_with_the_block_alone() -> None:
    """GPT-2 and its kin store weights (in, out)."""
    found = spread(torch.rand(4096), 0, (4096, 4096), 4095, 8192)
    assert found.untyped_storage().nbytes() < 1 << 18


def test_what_a_method_does_not_declare_it_cannot_read() -> None:
    group = TensorGroup(Site("w", "linear", (1,), ("a",)), [torch.ones(1)], None, (1.0,))
    with pytest.raises(MethodMalformed, match="not declared"):
        group.statistic(Statistic("fisher"))
    with pytest.raises(MethodMalformed, match="no statistic"):
        Statistic("fishr")
    with pytest.raises(MethodMalformed, match="no channels"):
        Statistic("gram", relative=True)


def test_the_catalogue_tells_of_every_declared_statistic() -> None:
    load()
    informed_methods = {name: each for name, each in registered().items() if each.needs.statistics}
    assert {"aim", "fisher", "regmean"} <= informed_methods.keys()
    for name, method in informed_methods.items():
        told = [of_catalogue(each) for each in catalogue()[name].statistics]
        own = [
            Statistic(each.kind, each.of, when=each.when, after=each.after, knobs=each.knobs)
            for each in method.needs.statistics
        ]
        assert told == own
