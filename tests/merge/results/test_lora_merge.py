"""LoRA adapters over one base merged into one adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.plan import Plan
from tests import tiny
from tests.merge.results.adapters import changes, made, planned, relative, weights

Q, V, DOWN = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.v_proj",
    "model.layers.1.mlp.down_proj",
)
SHAPES = {Q: (16, 16), V: (8, 16), DOWN: (16, 32)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.llama(folder / "base")
    tiny.lora(folder / "one", SHAPES, seed=1, r=4, alpha=8)
    tiny.lora(folder / "two", {Q: SHAPES[Q], DOWN: SHAPES[DOWN]}, seed=2, r=2, alpha=3, use_rslora=True)
    tiny.lora(folder / "three", SHAPES, seed=3, r=4, alpha=4, rank_pattern={V: 2}, alpha_pattern={DOWN: 16})
    return folder


def merging(
    *names: str, steps: list[Any] | None = None, weights: Any = (1.0, 1.0, 1.0), **result: Any
) -> dict[str, Any]:
    return {
        "base": "base",
        "sources": [
            {"id": name, "adapter": name, "weight": w} for name, w in zip(names, weights, strict=False)
        ],
        "steps": steps or ["task_arithmetic"],
        "result": {"form": "adapter", **(result or {"error": 0.0})},
    }


def total(root: Path, parts: dict[str, float], name: str) -> Tensor:
    """The weighted sum of what the adapters add to one weight: of products, never a product of sums."""
    shape = SHAPES[name.removesuffix(".weight")]
    zero = torch.zeros(shape).double()
    return sum((changes(root / part).get(name, zero) * weight for part, weight in parts.items()), zero)


def factored(plan: Plan) -> bool:
    assert plan.adapter is not None
    return all(module.factored for module in plan.adapter.modules)


def test_sum_has_no_cross_terms_at_any_ranks_and_alphas(root: Path, tmp_path: Path) -> None:
    document = merging("one", "two", "three", weights=(1.0, -1.0, 0.5))
    assert factored(planned(root, document))
    told = made(root, document, str(tmp_path / "out")).manifest["adapter"]
    found = changes(tmp_path / "out")
    assert found.keys() == {f"{name}.weight" for name in SHAPES}
    for name, change in found.items():
        wanted = total(root, {"one": 1.0, "two": -1.0, "three": 0.5}, name)
        assert relative(wanted, change) < 1e-6
    assert {name: module["rank"] for name, module in told["modules"].items()} == {Q: 10, V: 6, DOWN: 10}
    assert told["error"] < 1e-6
    assert told["left_out"] == {}


def test_one_adapter_at_weight_one_comes_back(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        made(root, merging(name), str(tmp_path / name))
        for tensor, change in changes(root / name).items():
            assert relative(change, changes(tmp_path / name)[tensor]) < 1e-6


def test_adapter_and_its_opposite_cancel(root: Path, tmp_path: Path) -> None:
    document = merging("one", "one", "two", weights=(1.0, -1.0, 1.0))
    document["sources"][1]["id"] = "again"
    told = made(root, document, str(tmp_path / "out")).manifest["adapter"]
    assert {name: module["rank"] for name, module in told["modules"].items()} == {Q: 2, V: 0, DOWN: 2}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == [Q, DOWN] or config["target_modules"] == sorted([Q, DOWN])
    assert relative(changes(root / "two")[f"{Q}.weight"], changes(tmp_path / "out")[f"{Q}.weight"]) < 1e-6


def test_recompression_is_the_best_of_its_rank(root: Path, tmp_path: Path) -> None:
    told = made(root, merging("one", "two", rank=3), str(tmp_path / "out")).manifest["adapter"]
    values = torch.linalg.svdvals(total(root, {"one": 1.0, "two": 1.0}, f"{Q}.weight"))
    assert told["modules"][Q]["error"] == pytest.approx(float(values[3:].norm() / values.norm()), rel=1e-3)


@pytest.mark.parametrize(
    ("steps", "shares"),
    [
        ([{"method": "task_arithmetic", "scale": 0.5}], (0.5, 1.0)),
        ([{"method": "task_arithmetic", "normalize": True}], (1 / 3, 2 / 3)),
        (["linear"], (1 / 3, 2 / 3)),
    ],
)
def test_factors_are_those_of_the_method(
    root: Path, tmp_path: Path, steps: list[Any], shares: tuple[float, float]
) -> None:
    document = merging("one", "three", steps=steps, weights=(1.0, 2.0))
    assert factored(planned(root, document))
    made(root, document, str(tmp_path / "out"))
    for name, change in changes(tmp_path / "out").items():
        assert relative(total(root, dict(zip(("one", "three"), shares, strict=True)), name), change) < 1e-6


def test_depth_curves_and_overrides_hold_for_factors_too(root: Path, tmp_path: Path) -> None:
    document = merging("one", "three", weights=([0.0, 1.0], 1.0))
    document["overrides"] = [{"match": "*.v_proj.*", "policy": "source:one"}]
    made(root, document, str(tmp_path / "out"))
    found = changes(tmp_path / "out")
    assert relative(total(root, {"three": 1.0}, f"{Q}.weight"), found[f"{Q}.weight"]) < 1e-6
    assert relative(total(root, {"one": 1.0, "three": 1.0}, f"{DOWN}.weight"), found[f"{DOWN}.weight"]) < 1e-6
    assert relative(total(root, {"one": 1.0}, f"{V}.weight"), found[f"{V}.weight"]) < 1e-6


def test_weights_of_the_base_are_not_read_where_factors_suffice(root: Path, tmp_path: Path) -> None:
    plan = planned(root, merging("one", "two"))
    assert {key: plan.weight_files(key) for key in ("base", "one", "two")} == {
        "base": (),
        "one": (),
        "two": (),
    }


@pytest.mark.parametrize(
    "steps",
    [
        [{"method": "ties", "density": 0.5}],
        [{"method": "dare", "density": 0.5}, {"method": "task_arithmetic"}],
        [{"method": "linear", "normalize": False}],
    ],
)
def test_other_methods_give_what_the_dense_merge_gives(root: Path, tmp_path: Path, steps: list[Any]) -> None:
    document = merging("one", "three", steps=steps, weights=(0.5, 0.7), error=1e-5)
    assert not factored(planned(root, document))
    made(root, document, str(tmp_path / "out"))
    dense = {key: value for key, value in document.items() if key != "result"}
    made(root, dense | {"dtype": {"output": "float32"}}, str(tmp_path / "dense"))
    base, merged = weights(root / "base"), weights(tmp_path / "dense")
    found = changes(tmp_path / "out")
    for name in SHAPES:
        change = merged[f"{name}.weight"] - base[f"{name}.weight"]
        assert relative(change, found[f"{name}.weight"]) < 1e-4


def test_untouched_modules_stay_out_of_the_adapter(root: Path, tmp_path: Path) -> None:
    document = merging("one", "two", steps=[{"method": "ties", "density": 0.5}])
    told = made(root, document, str(tmp_path / "out")).manifest["adapter"]
    assert set(told["modules"]) == set(SHAPES)


def test_saved_modules_are_merged_and_saved(root: Path, tmp_path: Path) -> None:
    head = torch.randn(tiny.VOCAB, 16)
    tiny.lora(tmp_path / "saving", {Q: SHAPES[Q]}, seed=5, saved={"lm_head.weight": head})
    tiny.llama(tmp_path / "base")
    tiny.lora(tmp_path / "one", SHAPES, seed=1)
    made(tmp_path, merging("saving", "one", weights=(0.25, 1.0)))
    base = weights(tmp_path / "base")["lm_head.weight"]
    saved = weights(tmp_path / "out")["base_model.model.lm_head.weight"]
    assert torch.allclose(saved, base + 0.25 * (head.double() - base), atol=1e-6)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["lm_head"]


def test_embedding_adapters_merge_as_embeddings(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "base")
    for seed, name in enumerate(("one", "two")):
        tiny.lora(tmp_path / name, {"model.embed_tokens": (tiny.VOCAB, 16), Q: (16, 16)}, seed=seed, r=3)
    made(tmp_path, merging("one", "two"))
    name = "model.embed_tokens.weight"
    wanted = changes(tmp_path / "one")[name] + changes(tmp_path / "two")[name]
    assert relative(wanted, changes(tmp_path / "out")[name]) < 1e-6
