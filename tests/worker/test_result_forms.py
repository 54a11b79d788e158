"""Jobs whose result is no ordinary checkpoint, from names to the pushed repository."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.mergekit.translate import translate
from tests import tiny
from tests.worker.conftest import Floor

REPO = "team/merged"
PUSHED = {"output": {"repo": REPO}}
Q = "model.layers.0.self_attn.q_proj"


def warned(floor: Floor, job_id: str) -> list[str]:
    return [each.data["code"] for each in floor.events(job_id) if each.type == "merge.warning"]


def pushed(floor: Floor) -> set[str]:
    return {path.name for path in (floor.hub.store.root / REPO).iterdir() if not path.name.startswith(".")}


def test_an_extracted_adapter_is_pushed_with_its_base_pinned(floor: Floor) -> None:
    recipe: dict[str, Any] = {
        "base": "team/base",
        "sources": [{"id": "a", "model": "team/expert1"}],
        "steps": ["passthrough"],
        "result": {"form": "adapter", "rank": 4},
    }
    job = floor.run(floor.order(recipe, **PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    assert job.result is not None and job.result["checked"] is True
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "mergery.json"} <= pushed(floor)
    assert "config.json" not in pushed(floor)
    config = json.loads(floor.read(REPO, "adapter_config.json"))
    assert config["base_model_name_or_path"] == "team/base"
    assert config["revision"] == floor.hub.head("team/base")
    card = floor.read(REPO, "README.md").decode()
    assert "base_model:\n- team/base\nbase_model_relation: adapter" in card
    assert f"(<{floor.hub.url}/team/base/tree/{floor.hub.head('team/base')}>)" in card
    assert "library_name: peft" in card
    assert json.loads(floor.read(REPO, "mergery.json"))["adapter"]["modules"][Q]["rank"] == 4


@pytest.mark.parametrize("step", ["task_arithmetic", "cat_svd"])
def test_adapters_are_merged_from_the_hub(floor: Floor, step: str) -> None:
    root = floor.hub.store.root
    for seed, name in enumerate(("one", "two")):
        tiny.lora(root / "team" / name, {Q: (64, 64)}, seed=seed, r=2)
    recipe: dict[str, Any] = {
        "base": "team/base",
        "sources": [{"id": name, "adapter": f"team/{name}"} for name in ("one", "two")],
        "steps": [step],
        "result": {"form": "adapter", "error": 0.0},
    }
    job = floor.run(floor.order(recipe, **PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    got = load_file(root / REPO / "adapter_model.safetensors")
    a, b = (got[f"base_model.model.{Q}.lora_{side}.weight"] for side in "AB")
    wanted = torch.zeros(64, 64)
    for name in ("one", "two"):
        source = load_file(root / "team" / name / "adapter_model.safetensors")
        left, right = (source[f"base_model.model.{Q}.lora_{side}.weight"] for side in "BA")
        wanted += 4 * left @ right
    assert torch.allclose(b @ a, wanted, atol=1e-5)
    assert floor.hub.stats.bytes["weight"] == 2 * 4 * (2 * 64 + 64 * 2)
    assert job.result is not None and job.result["checked"] is None and "not_checked" in warned(floor, job.id)


def test_single_files_of_repositories_are_merged_and_nothing_else_is_fetched(floor: Floor) -> None:
    folder: Path = floor.hub.store.root / "team" / "styles" / "checkpoints"
    folder.mkdir(parents=True)
    for number, name in enumerate(("one", "two", "other")):
        save_file({"unet.weight": torch.full((64, 64), float(number))}, folder / f"{name}.safetensors")
    recipe: dict[str, Any] = {
        "sources": [
            {"id": name, "model": f"team/styles:checkpoints/{name}.safetensors"} for name in ("one", "two")
        ],
        "steps": ["linear"],
    }
    job = floor.run(floor.order(recipe, **PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    merged = load_file(floor.hub.store.root / REPO / "model.safetensors")
    assert torch.equal(merged["unet.weight"], torch.full((64, 64), 0.5))
    assert floor.hub.stats.bytes["weight"] == 2 * 64 * 64 * 4
    assert "library_name" not in floor.read(REPO, "README.md").decode().split("---")[1]


def test_a_mixture_is_checked_and_pushed_as_a_whole_model(floor: Floor) -> None:
    recipe: dict[str, Any] = {
        "base_model": "team/base",
        "gate_mode": "hidden",
        "experts": [
            {"source_model": f"team/expert{number}", "positive_prompts": [text]}
            for number, text in ((1, "sums"), (2, "poems"))
        ],
    }
    translated = translate(recipe).recipe.model_dump(mode="json")
    job = floor.run(floor.order(translated, **PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    assert job.result is not None and job.result["checked"] is True
    assert json.loads(floor.read(REPO, "config.json"))["architectures"] == ["MixtralForCausalLM"]
    card = floor.read(REPO, "README.md").decode()
    assert "library_name: transformers" in card and "base_model_relation: merge" in card
