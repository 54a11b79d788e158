"""State dicts without a config: one weight file, or a folder of another library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.checkpoint.index import index_folder
from merge.file_errors import ModelNotFound, PickleRefused
from merge.plan import Plan, make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run

BUDGET = 128 << 20
SHAPES = {
    "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
    "cond_stage_model.logit_scale": (),
    "first_stage_model.encoder.conv_in.bias": (8,),
}


def single(path: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}, path)
    return path


def planned(*paths: Path, **more: object) -> Plan:
    document = {
        "sources": [{"id": f"m{n}", "model": str(p)} for n, p in enumerate(paths)],
        "steps": ["linear"],
    }
    models = {f"m{number}": index_folder(path) for number, path in enumerate(paths)}
    return make_plan(recipe_from(document | more), models, budget=BUDGET)


def test_single_files_merge_by_name_with_a_warning_and_no_config(tmp_path: Path) -> None:
    paths = [single(tmp_path / "styles" / f"style{seed}.safetensors", seed) for seed in (1, 2)]
    (tmp_path / "styles" / "tokenizer.json").write_text("{}")
    (tmp_path / "styles" / "config.json").write_text('{"model_type": "of another model"}')
    plan = planned(*paths)
    assert [(f.code, f.severity) for f in plan.findings] == [("architecture_unknown", "warning")]
    run(
        plan, {"m0": paths[0].parent, "m1": paths[1].parent}, tmp_path / "out", budget_bytes=BUDGET, threads=1
    )
    merged, one, two = (load_file(path) for path in (tmp_path / "out" / "model.safetensors", *paths))
    assert merged.keys() == SHAPES.keys()
    for name in SHAPES:
        assert torch.allclose(merged[name], (one[name] + two[name]) / 2)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not left & {"config.json", "tokenizer.json"}


def test_diffusers_folder_keeps_the_names_of_its_files(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        single(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors", seed)
        (tmp_path / name / "unet" / "config.json").write_text(
            json.dumps({"_class_name": "UNet2DConditionModel"})
        )
    folders = {"m0": tmp_path / "a" / "unet", "m1": tmp_path / "b" / "unet"}
    plan = planned(*folders.values())
    assert plan.findings == ()
    run(plan, folders, tmp_path / "out", budget_bytes=BUDGET, threads=1)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"diffusion_pytorch_model.safetensors", "config.json"} <= names


def test_many_shards_of_another_library_have_an_index_of_that_name(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        save_file(
            {f"t{n}": torch.full((200, 100), float(n + seed)) for n in range(3)},
            single(tmp_path / name / "diffusion_pytorch_model.safetensors", seed),
        )
    plan = planned(tmp_path / "a", tmp_path / "b", shard_bytes=1 << 17)
    run(plan, {"m0": tmp_path / "a", "m1": tmp_path / "b"}, tmp_path / "out", budget_bytes=BUDGET, threads=1)
    index = json.loads((tmp_path / "out" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {
        f"diffusion_pytorch_model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    }
    assert index_folder(tmp_path / "out").tensors.keys() == {"t0", "t1", "t2"}


def test_command_line_takes_files(tmp_path: Path) -> None:
    for seed in (1, 2):
        single(tmp_path / f"style{seed}.safetensors", seed)
    recipe = {"sources": ["style1.safetensors", "style2.safetensors"], "steps": ["linear"]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "merge", "run", str(tmp_path / "recipe.json"), str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_pickles_stay_refused(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").write_bytes(b"x" * 64)
    with pytest.raises(PickleRefused):
        index_folder(tmp_path / "old.ckpt")
    with pytest.raises(ModelNotFound):
        index_folder(tmp_path / "none.safetensors")
