"""Translated configurations give the numbers that mergekit's rules give, worked out here on their own."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge.mergekit.translate import translate
from merge.plan import make_plan
from merge.run import run
from tests.merge import exact

GIB = 1 << 30
LAYERS = 6
NAMES = ("self_attn.q_proj.weight", "mlp.up_proj.weight")
BEFORE, AFTER = ["model.embed_tokens.weight"], ["model.norm.weight", "lm_head.weight"]
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (20, 8),
    **{f"model.layers.{n}.{name}": (8, 8) for n in range(LAYERS) for name in NAMES},
    "model.norm.weight": (8,),
    "lm_head.weight": (20, 8),
}
Weights = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("models")
    config = {"num_hidden_layers": LAYERS}
    return {
        name: exact.write(root / name, name, SHAPES, dtype=torch.float32, config=config)
        for name in ("base", "a", "b")
    }


def merged(found: dict[str, Any], folders: Mapping[str, Path], out: Path) -> Weights:
    recipe = translate(found).recipe
    keys = {source.id: folders[source.model] for source in recipe.sources}
    keys |= {"base": folders["base"]} if recipe.base else {}
    plan = make_plan(recipe, exact.indices(keys), budget=GIB)
    run(plan, keys, out, budget_bytes=GIB, threads=1, survey="none")
    return load_file(out / "model.safetensors")


class Reference:
    """The values of parameters, straight from a configuration with slices."""

    def __init__(self, found: dict[str, Any], models: Mapping[str, Weights]) -> None:
        self.found, self.models = found, models

    def spots(self) -> Iterator[tuple[str, dict[str, Any], float, dict[str, str]]]:
        """(name in the result, slice, t, name in each model)."""
        slices = self.found["slices"]
        for name in BEFORE:
            yield name, slices[0], 0.0, {each["model"]: name for each in slices[0]["sources"]}
        layer = 0
        for part in slices:
            count = part["sources"][0]["layer_range"][1] - part["sources"][0]["layer_range"][0]
            for offset in range(count):
                t = offset / (count - 1) if count > 1 else 1.0
                for name in NAMES:
                    own = {
                        each["model"]: f"model.layers.{each['layer_range'][0] + offset}.{name}"
                        for each in part["sources"]
                    }
                    yield f"model.layers.{layer}.{name}", part, t, own
                layer += 1
        for name in AFTER:
            yield name, slices[-1], 0.0, {each["model"]: name for each in slices[-1]["sources"]}

    def value(self, key: str, part: dict[str, Any], t: float, name: str, model: str | None) -> Any:
        """The first place that says something: the model in its slice, the slice, the top level."""
        own = [each.get("parameters", {}) for each in part["sources"] if each["model"] == model]
        for scope in (*own, part.get("parameters", {}), self.found.get("parameters", {})):
            if key in scope and (said := pick(scope[key], t, name)) is not None:
                return said
        return None


def pick(setting: Any, t: float, name: str) -> Any:
    if isinstance(setting, list) and any(isinstance(item, dict) for item in setting):
        fits = (item for item in setting if item.get("filter") in (None, "*") or item["filter"] in name)
        return next((pick(item["value"], t, name) for item in fits), None)
    if isinstance(setting, list) and isinstance(setting[0], bool):
        return setting[int(t * (len(setting) - 1))]
    if isinstance(setting, list):
        place = t * (len(setting) - 1)
        low = int(place)
        high = min(low + 1, len(setting) - 1)
        return (1 - (place - low)) * float(setting[low]) + (place - low) * float(setting[high])
    return float(setting) if isinstance(setting, str) else setting


def source(model: str, first: int, end: int, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, end], "parameters": parameters}


CURVES = {
    "weight": [
        {"filter": "q_proj", "value": [0.1, 0.7, "2e-1"]},
        {"filter": "layers.2", "value": 0.33},
        {"value": [0.6, 0.9]},
    ],
    "normalize": [True, False],
    "lambda": [{"filter": "mlp", "value": [0.5, 1.5]}, {"value": 0.8}],
}
SLICES = [
    {"sources": [source("a", 0, 3, weight=0.9), source("b", 1, 4), source("base", 0, 3)],
     "parameters": {"weight": [{"filter": "up_proj", "value": [0.2, 0.4]}]}},
    {"sources": [source("base", 2, 4), source("b", 3, 5, weight=[1, 0.5])], "parameters": {"lambda": 2.0}},
    {"sources": [source("a", 5, 6), source("base", 5, 6), source("b", 5, 6)]},
]  # fmt: skip


def test_task_vectors_of_slices_follow_filters_gradients_and_precedence(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    found = {"merge_method": "task_arithmetic", "base_model": "base", "slices": SLICES, "parameters": CURVES}
    made = merged(found, folders, tmp_path / "out")
    models = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
    reference = Reference(found, models)
    seen = set()
    for name, part, t, own in reference.spots():
        base = models["base"][own["base"]]
        weights = {m: reference.value("weight", part, t, own[m], m) for m in own if m != "base"}
        delta = sum(w * (models[m][own[m]] - base) for m, w in weights.items())
        if reference.value("normalize", part, t, name, None):
            delta = delta / sum(weights.values())
        expected = base + reference.value("lambda", part, t, name, None) * delta
        torch.testing.assert_close(made[name], expected, rtol=0, atol=1e-6)
        seen.add(name)
    assert seen == made.keys()


def test_models_of_linear_follow_the_same_rules(folders: Mapping[str, Path], tmp_path: Path) -> None:
    own = {"weight": [{"filter": "mlp", "value": [0, 1]}, {"filter": "lm_head", "value": 3}]}
    found = {
        "merge_method": "linear",
        "models": [{"model": "a", "parameters": own}, {"model": "b"}],
        "parameters": {"weight": [0.4, 0.8], "normalize": True},
    }
    made = merged(found, folders, tmp_path / "out")
    models = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
    sources = [source("a", 0, LAYERS, **own), source("b", 0, LAYERS)]
    reference = Reference({**found, "slices": [{"sources": sources}]}, models)
    for name, part, t, _ in reference.spots():
        weights = [reference.value("weight", part, t, name, model) for model in "ab"]
        expected = sum(w * models[m][name] for m, w in zip("ab", weights, strict=True)) / sum(weights)
        torch.testing.assert_close(made[name], expected, rtol=0, atol=1e-6)


def test_a_lora_of_a_base_is_in_the_differences(folders: Mapping[str, Path], tmp_path: Path) -> None:
    """The same as with a base whose tensors are already the sum."""
    plain = {
        "merge_method": "task_arithmetic", "base_model": "b", "models": [{"model": "a"}],
        "parameters": {"weight": 0.25},
    }  # fmt: skip
    recipe = translate({**plain, "base_model": "b+b-lora"}).recipe
    assert [source.adapter for source in recipe.sources] == ["b-lora", None]
    without = recipe.model_copy(
        update={"sources": tuple(each.model_copy(update={"adapter": None}) for each in recipe.sources)}
    )
    keys = {each.id: folders[each.model] for each in without.sources}
    plan = make_plan(without, exact.indices(keys), budget=GIB)
    run(plan, keys, tmp_path / "out", budget_bytes=GIB, threads=1, survey="none")
    made = load_file(tmp_path / "out" / "model.safetensors")
    models = {name: load_file(folders[name] / "model.safetensors") for name in "ab"}
    for name, tensor in made.items():
        expected = models["b"][name] + 0.25 * (models["a"][name] - models["b"][name])
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
