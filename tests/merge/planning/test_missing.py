from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge.errors import PlanRefused
from merge.plan import Plan, make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from tests.merge import exact

BUDGET = 128 << 20
EXTRA = "model.layers.0.self_attn.q_proj.bias"
SHAPES = {"model.layers.0.self_attn.q_proj.weight": (16, 16), "model.norm.weight": (16,)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base and a lack EXTRA, b and c have it."""
    root = tmp_path_factory.mktemp("models")
    extra = {"b": torch.arange(16) / 8, "c": torch.ones(16)}
    return {
        name: exact.write(
            root / name,
            name,
            SHAPES,
            dtype=torch.float32,
            extra={EXTRA: extra[name].float()} if name in extra else None,
        )
        for name in ("base", "a", "b", "c")
    }


def planned(folders: dict[str, Path], rule: str | None, *names: str, **more: Any) -> Plan:
    document: dict[str, Any] = {
        "sources": [{"id": name, "model": name, "weight": 1.0 if name != "c" else 3.0} for name in names],
        "steps": ["linear"],
        **({"missing": rule} if rule else {}),
    }
    return make_plan(recipe_from(document | more), exact.indices(folders), budget=BUDGET)


def merged(folders: dict[str, Path], out: Path, rule: str, *names: str, **more: Any) -> dict[str, Tensor]:
    run(planned(folders, rule, *names, **more), folders, out, budget_bytes=BUDGET, threads=1)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("names", [("b", "a"), ("a", "b")])
def test_error_is_the_default_and_hints_at_the_field(
    folders: dict[str, Path], names: tuple[str, ...]
) -> None:
    with pytest.raises(PlanRefused, match="missing: fill, present or drop would go on"):
        planned(folders, None, *names)


@pytest.mark.parametrize("names", [("b", "a", "c"), ("a", "b", "c")])
def test_drop_leaves_it_out(folders: dict[str, Path], tmp_path: Path, names: tuple[str, ...]) -> None:
    assert EXTRA not in merged(folders, tmp_path / "out", "drop", *names)
    codes = {(f.code, f.severity) for f in planned(folders, "drop", *names).findings}
    assert codes == {("missing_drop", "warning")}


@pytest.mark.parametrize("names", [("b", "a", "c"), ("a", "b", "c")])
def test_present_merges_those_that_have_it_by_their_weights(
    folders: dict[str, Path], tmp_path: Path, names: tuple[str, ...]
) -> None:
    got = merged(folders, tmp_path / "out", "present", *names)[EXTRA]
    assert torch.allclose(got, (torch.arange(16) / 8 + 3) / 4)


def test_fill_takes_the_first_that_has_it_where_there_is_no_base(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    got = merged(folders, tmp_path / "out", "fill", "a", "b", "c")[EXTRA]
    assert torch.allclose(got, (2 * torch.arange(16) / 8 + 3) / 5)


def test_fill_takes_the_bases_where_it_has_it(folders: dict[str, Path], tmp_path: Path) -> None:
    used = {"base": folders["b"], "a": folders["a"], "c": folders["c"]}
    plan = planned(used, "fill", "a", "c", base="b")
    assert [f.code for f in plan.findings] == ["missing_fill"]
    run(plan, used, tmp_path / "out", budget_bytes=BUDGET, threads=1)
    got = load_file(tmp_path / "out" / "model.safetensors")[EXTRA]
    assert torch.allclose(got, (torch.arange(16) / 8 + 3) / 4)


def test_filled_task_vector_is_zero(folders: dict[str, Path], tmp_path: Path) -> None:
    used = {"base": folders["b"], "a": folders["a"], "c": folders["c"]}
    got = merged(used, tmp_path / "out", "fill", "a", "c", base="b", steps=["task_arithmetic"])[EXTRA]
    base = torch.arange(16) / 8
    assert torch.allclose(got, base + 3 * (1 - base))


@pytest.mark.parametrize(("method", "wanted"), [("task_arithmetic", [13, 11, 12]), ("linear", [8, 6, 7])])
def test_filled_layers_are_the_bases_own_where_slices_move_them(
    tmp_path: Path, method: str, wanted: list[int]
) -> None:
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
    shapes = {f"{name}.weight": (16, 16) for name in names}
    biases = {"base": 1.0, "b": 11.0}
    folders = {
        key: exact.write(
            tmp_path / key, key, shapes, dtype=torch.float32, config={"num_hidden_layers": 3},
            extra={f"{name}.bias": torch.full((16,), biases[key] + layer) for layer, name in enumerate(names)}
            if key in biases else None,
        )
        for key in ("base", "a", "b")
    }  # fmt: skip
    parts = [{"sources": [{"id": key, "layers": cut} for key in "ab"]} for cut in ([2, 3], [0, 2])]
    made = merged(folders, tmp_path / "out", "fill", "a", "b", base="base", steps=[method], slices=parts)
    assert [float(made[f"{name}.bias"][0]) for name in names] == wanted


def test_present_without_the_bases_own_is_the_mean_of_the_others(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    more = {"base": "base", "steps": [{"method": "ties", "density": [0.2, 0.5]}]}
    got = merged(folders, tmp_path / "out", "present", "a", "b", "c", **more)[EXTRA]
    assert torch.allclose(got, (torch.arange(16) / 8 + 1) / 2)


def test_too_few_for_the_method_are_copied(folders: dict[str, Path], tmp_path: Path) -> None:
    got = merged(folders, tmp_path / "out", "present", "a", "b", steps=[{"method": "slerp", "t": 0.5}])[EXTRA]
    assert torch.equal(got, torch.arange(16) / 8)


def test_settings_of_sources_follow_the_sources_that_are_left(
    folders: dict[str, Path],
) -> None:
    used = {"base": folders["b"], "a": folders["a"], "c": folders["c"]}
    steps = [{"method": "dare", "density": 0.5}, "task_arithmetic"]
    overrides = [
        {"match": "*", "source": name, "settings": {"density": value}}
        for name, value in (("a", 0.1), ("c", 0.75))
    ]
    plan = planned(used, "present", "a", "c", base="b", steps=steps, overrides=overrides)
    output = next(each for each in plan.outputs if each.name == EXTRA)
    assert [each.model for each in output.inputs] == ["base", "c"]
    assert output.settings[0]["density"] == (0.75,)
    assert output.weights == (3.0,)


@pytest.mark.parametrize("method", ["ties", "pcb", "opcm"])
def test_over_the_whole_model_tensors_that_fewer_have_are_ranked_by_themselves(
    folders: dict[str, Path], tmp_path: Path, method: str
) -> None:
    steps = [{"method": method, "scope": "global"}]
    based = {name: folders["c" if name == "base" else name] for name in ("base", "a", "b", "c")}
    whole = merged(based, tmp_path / "whole", "present", "a", "b", "c", base="base", steps=steps)
    fewer = merged(based, tmp_path / "fewer", "drop", "a", "b", "c", base="base", steps=steps)
    assert EXTRA in whole
    assert all(torch.equal(whole[name], tensor) for name, tensor in fewer.items())


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_over_the_whole_model_a_tensor_that_is_filled_in_counts_as_its_source_s_own(
    folders: dict[str, Path], tmp_path: Path, scope: str
) -> None:
    """As if the file of ``a`` held the base's tensor."""
    extra = {EXTRA: torch.ones(16)}
    given = exact.write(tmp_path / "a", "a", SHAPES, dtype=torch.float32, extra=extra)
    based = {"base": folders["c"], "a": folders["a"], "b": folders["b"]}
    steps = [{"method": "ties", "density": 0.3, "scope": scope}]
    filled = merged(based, tmp_path / "filled", "fill", "a", "b", base="base", steps=steps)
    whole = merged({**based, "a": given}, tmp_path / "whole", "error", "a", "b", base="base", steps=steps)
    assert filled.keys() == whole.keys() and EXTRA in whole
    assert all(torch.equal(filled[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("rule", ["fill", "present"])
@pytest.mark.parametrize("layer", [0, 1])
def test_what_only_the_base_has_is_the_bases_also_where_a_mean_is_wanted(
    tmp_path: Path, rule: str, layer: int
) -> None:
    """The sources' layer 0 is merged over the base's first or second layer, which has a norm alone."""
    shapes = {f"model.layers.{number}.self_attn.q_proj.weight": (16, 16) for number in range(2)}
    norm = {f"model.layers.{layer}.input_layernorm.weight": torch.arange(16).float()}
    folders = {
        key: exact.write(tmp_path / key, key, shapes, dtype=torch.float32, config={"num_hidden_layers": 2},
                         extra=norm if key == "base" else None)
        for key in ("base", "a", "b")
    }  # fmt: skip
    cut = [{"id": key, "layers": [0, 1]} for key in "ab"]
    parts = [{"sources": cut, "base_layers": [layer, layer + 1]}]
    more = {"base": "base", "steps": ["ties"], "classes": {"norm": "mean"}, "slices": parts}
    made = merged(folders, tmp_path / "out", rule, "a", "b", **more)
    assert torch.equal(made["model.layers.0.input_layernorm.weight"], torch.arange(16).float())


@pytest.mark.parametrize("rule", ["fill", "present"])
@pytest.mark.parametrize("fate", ["drop", "save"])
def test_an_adapter_leaves_out_what_the_base_lacks(
    folders: dict[str, Path], tmp_path: Path, rule: str, fate: str
) -> None:
    result = {"form": "adapter", "rank": 2, "classes": {"bias": fate}}
    plan = planned(folders, rule, "a", "b", base="base", steps=["task_arithmetic"], result=result)
    assert ("adapter_left_out", EXTRA) in {(finding.code, finding.tensor) for finding in plan.findings}
    run(plan, folders, tmp_path / "out", budget_bytes=BUDGET, threads=1)
    made = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert made and all("q_proj.lora_" in name for name in made)
