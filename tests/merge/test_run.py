"""A whole run: the numbers, what is refused, the files of the result, what is told meanwhile."""

import gc
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merge.checkpoint.index import attach, index_adapter_folder
from merge.errors import (
    BudgetTooSmall,
    NotFinite,
    TensorsDiffer,
)
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.report import Progress
from tests import tiny
from tests.merge import exact
from tests.merge.references import BUDGET, CHAINS, DARE_L1, tensors_digest
from tests.merge.runs import merged, planned, read_all

GIB = 1 << 30


def test_bytes_are_the_same_without_vector_instructions(folders: Mapping[str, Path], tmp_path: Path) -> None:
    document = {
        "base": "base",
        "sources": [{"id": "a", "model": "a"}, {"id": "b", "model": "b", "weight": 0.5}],
        "steps": [DARE_L1, {"method": "ties", "scale": 0.7}],
    }
    recipe = folders["base"].parent / "recipe.json"
    recipe.write_text(json.dumps(document))
    plain = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-m", "merge", "run", str(recipe), str(tmp_path / "plain"), "--threads", "1"]
    subprocess.run(command, check=True, env=plain, capture_output=True)
    plan = make_plan(recipe_from(document), exact.indices(folders), budget=BUDGET)
    merged(plan, folders, tmp_path / "here")
    assert tensors_digest(tmp_path / "plain") == tensors_digest(tmp_path / "here")


def test_too_little_memory_for_a_run_is_refused(folders: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BudgetTooSmall):
        merged(planned(folders), folders, tmp_path / "out", budget=1 << 20)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_number_in_an_input_stops_with_tensor_and_model(tmp_path: Path, value: float) -> None:
    folders = exact.family(tmp_path)
    bad = torch.ones(128, dtype=torch.bfloat16)
    bad[5] = value
    exact.write(folders["b"], "b", extra={"model.norm.weight": bad})
    with pytest.raises(NotFinite, match=r"model\.norm\.weight of b "):
        merged(planned(folders), folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_number_too_large_for_the_output_stops_with_the_tensor(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    plan = planned(folders, "task_arithmetic", steps=[{"method": "task_arithmetic", "scale": 1e8}],
                   dtype={"output": "float16"})  # fmt: skip
    with pytest.raises(NotFinite, match=r"float16"):
        merged(plan, folders, tmp_path / "out")


def test_whole_numbers_must_be_equal_and_are_copied(tmp_path: Path) -> None:
    position = {"model.position_ids": torch.arange(512).view(1, 512)}
    folders = exact.family(tmp_path, extra=position)
    merged(planned(folders), folders, tmp_path / "out")
    kept = {name: t for f in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(f).items()}
    assert torch.equal(kept["model.position_ids"], position["model.position_ids"])
    exact.write(folders["c"], "c", extra={"model.position_ids": position["model.position_ids"] + 1})
    with pytest.raises(TensorsDiffer, match=r"model\.position_ids .* base and c"):
        merged(planned(folders), folders, tmp_path / "other")


def test_policies_copy_average_or_take_one_source(folders: Mapping[str, Path], tmp_path: Path) -> None:
    plan = planned(folders, classes={"norm": "mean", "head": "base", "embed": "source:c"})
    merged(plan, folders, tmp_path / "out")
    made, models = read_all(tmp_path / "out"), {name: read_all(path) for name, path in folders.items()}
    assert torch.equal(made["lm_head.weight"], models["base"]["lm_head.weight"])
    assert torch.equal(made["model.embed_tokens.weight"], models["c"]["model.embed_tokens.weight"])
    mean = torch.stack([models[name]["model.norm.weight"].double() for name in "abc"]).mean(0)
    assert torch.equal(made["model.norm.weight"], mean.to(torch.bfloat16))


def test_results_are_rounded_once(folders: Mapping[str, Path], tmp_path: Path) -> None:
    merged(planned(folders, "task_arithmetic"), folders, tmp_path / "out")
    made, models = read_all(tmp_path / "out"), {name: read_all(path) for name, path in folders.items()}
    name = "model.layers.0.mlp.up_proj.weight"
    base = models["base"][name].double()
    deltas = [w * (models[m][name].double() - base) for m, w in zip("abc", (1.0, 0.5, 2.0), strict=True)]
    wanted = (base + 0.4 * sum(deltas, start=torch.zeros_like(base))).to(torch.bfloat16)
    assert float((made[name] != wanted).float().mean()) < 1e-3, (
        "float32 rounding may tip a bf16 one now and then"
    )
    assert made[name].dtype == torch.bfloat16


def test_float64_arithmetic_can_be_asked_for(folders: Mapping[str, Path], tmp_path: Path) -> None:
    plan = planned(folders, "ties", dtype={"compute": "float64", "output": "float32"})
    merged(plan, folders, tmp_path / "wide")
    merged(planned(folders, "ties", dtype={"output": "float32"}), folders, tmp_path / "plain")
    wide, plain = read_all(tmp_path / "wide"), read_all(tmp_path / "plain")
    assert all(torch.allclose(wide[name], plain[name], atol=1e-5) for name in exact.SHAPES)


def test_an_adapter_source_equals_the_model_with_the_adapter_merged_in(tmp_path: Path) -> None:
    folders = exact.family(tmp_path, ("base", "a", "b"), dtype=torch.float32)
    modules = {"model.layers.0.mlp.up_proj": (1100, 128), "model.layers.1.self_attn.q_proj": (128, 128)}
    adapter = tiny.lora(tmp_path / "lora", modules, r=8, use_rslora=True, rank_pattern={"q_proj": 2})
    factors = load_file(adapter / "adapter_model.safetensors")
    tensors = read_all(folders["a"])
    for module in modules:
        low, high = (factors[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "AB")
        scale = 8 / low.shape[0] ** 0.5
        tensors[f"{module}.weight"] = (tensors[f"{module}.weight"].double() + scale * high @ low).float()
    whole = {**folders, "a": exact.write(tmp_path / "whole", "a", extra=tensors, dtype=torch.float32)}
    models = exact.indices(folders)
    models["a"] = attach(models["a"], index_adapter_folder(adapter))
    sources = [{"id": "a", "model": "a", "adapter": "lora"}, {"id": "b", "model": "b"}]
    recipe = recipe_from({"base": "base", "sources": sources, "steps": CHAINS["task_arithmetic"][1]})
    plan = make_plan(recipe, models, budget=BUDGET)
    merged(plan, {**folders, "a+adapter": adapter}, tmp_path / "applied")
    plain = [{"id": "a", "model": "a"}, {"id": "b", "model": "b"}]
    merged(planned(whole, "task_arithmetic", sources=plain), whole, tmp_path / "before")
    applied, before = read_all(tmp_path / "applied"), read_all(tmp_path / "before")
    assert all(torch.allclose(applied[name], before[name], atol=1e-5) for name in exact.SHAPES)


def test_config_tokenizer_and_manifest_are_complete(tmp_path: Path) -> None:
    paths = tiny.family(tmp_path, 2, dtype=torch.bfloat16)
    folders = {"base": paths[0], "a": paths[1], "b": paths[2]}
    exact_config = json.loads((folders["base"] / "config.json").read_text())
    exact_config |= {"auto_map": {"AutoModel": "x.Y"}, "_name_or_path": "/secret"}
    (folders["base"] / "config.json").write_text(json.dumps(exact_config))
    (folders["base"] / "generation_config.json").write_text('{"max_length": 7}')
    (folders["a"] / "chat_template.jinja").write_text("{{ messages }}")
    sources = [{"id": "a", "model": "a"}, {"id": "b", "model": "b"}]
    plan = planned(folders, sources=sources, tokenizer={"source": "a"}, dtype={"output": "float32"})
    report = merged(plan, folders, tmp_path / "out")
    out = tmp_path / "out"
    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["model_type"]) == ("float32", "llama")
    assert not {"auto_map", "_name_or_path"} & config.keys()
    assert (out / "generation_config.json").read_text() == '{"max_length": 7}'
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (out / "tokenizer.json").read_bytes() == (folders["a"] / "tokenizer.json").read_bytes()
    manifest = json.loads((out / "mergery.json").read_text())
    assert manifest == report.manifest
    assert {file.name for file in out.iterdir()} == {*manifest["files"], "mergery.json"}
    for name, told in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == told["sha256"]
    assert manifest["methods"] == {"ties": 1}
    assert str(tmp_path) not in (out / "mergery.json").read_text(), (
        "a manifest says nothing about this machine"
    )


def test_a_chat_template_of_the_recipe_wins(tmp_path: Path) -> None:
    paths = tiny.family(tmp_path, 1)
    folders = {"base": paths[0], "a": paths[1]}
    plan = planned(folders, "passthrough", chat_template="{{ x }}")
    merged(plan, folders, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ x }}"


def test_progress_only_grows_and_ends_complete(folders: Mapping[str, Path], tmp_path: Path) -> None:
    seen: list[Progress] = []
    merged(planned(folders, "dare_ties"), folders, tmp_path / "out", 2, on_progress=seen.append)
    assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)
    assert [p.tensors_done for p in seen] == sorted(p.tensors_done for p in seen)
    last = seen[-1]
    assert (last.tensors_done, last.bytes_done) == (last.tensors_total, last.bytes_total)
    assert 3 < len(seen) < 300


def test_what_was_there_before_a_run_is_the_collectors_again_after_it(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    during: list[int] = []
    merged(
        planned(folders),
        folders,
        tmp_path / "out",
        on_progress=lambda _: during.append(gc.get_freeze_count()),
    )
    assert min(during) > 100_000
    assert gc.get_freeze_count() == 0
