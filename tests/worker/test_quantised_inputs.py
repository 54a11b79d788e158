"""Jobs whose inputs are quantised: from the Hub's files to a published model in plain floats."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.merge.checkpoint.gguf.write import Q8_0, write
from tests.worker.conftest import Floor, family_recipe
from tests.worker.merging import PUSHED, REPO, undisturbed

GROUP = 32
HIDDEN = 64


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def stored(floor: Floor, name: str, like: str, tensors: dict[str, Tensor], said: dict[str, Any]) -> Path:
    """A repository of the Hub with these tensors, and for the rest what another one has."""
    root, folder = floor.hub.store.root / "team", floor.hub.store.root / "team" / name
    folder.mkdir()
    config = json.loads((root / like / "config.json").read_text()) | {"quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((root / like / file).read_bytes())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def gptq(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Projections in four bits as GPTQ stores them, and the numbers they stand for."""
    made, meant = {}, {}
    for name, weight in weights.items():
        if "_proj" not in name:
            made[name] = meant[name] = weight
            continue
        inputs = weight.float().T.reshape(-1, GROUP, weight.shape[0])
        scale = (inputs.abs().amax(1, keepdim=True) / 7).half()
        codes = (inputs / scale.float()).round().clamp(-8, 7)
        meant[name] = (codes * scale.float()).reshape(-1, weight.shape[0]).T
        stem = name.removesuffix(".weight")
        words = (codes + 8).reshape(-1, 8, weight.shape[0]).long()
        packed = sum(words[:, at] << (4 * at) for at in range(8))
        made[f"{stem}.qweight"] = torch.as_tensor(packed).to(torch.int32)
        made[f"{stem}.qzeros"] = torch.full((len(scale), weight.shape[0] // 8), 0x77777777, dtype=torch.int32)
        made[f"{stem}.scales"] = scale.squeeze(1)
    return made, meant


def fp8(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Projections in eight bits with a scale a row, and the numbers they stand for."""
    made, meant = {}, {}
    for name, weight in weights.items():
        made[name] = meant[name] = weight
        if "_proj" in name:
            scale = weight.float().abs().amax(1, keepdim=True) / 448
            made[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
            made[f"{name}_scale"] = scale
            meant[name] = made[name].float() * scale
    return made, meant


def test_a_gptq_and_an_fp8_model_merge_into_a_published_one(floor: Floor) -> None:
    root = floor.hub.store.root / "team"
    four, means_four = gptq(tensors_of(root / "expert1"))
    eight, means_eight = fp8(tensors_of(root / "expert2"))
    stored(floor, "gptq", "expert1", four, {"quant_method": "gptq", "bits": 4, "group_size": GROUP})
    stored(floor, "fp8", "expert2", eight, {"quant_method": "compressed-tensors"})
    sources = [
        {"id": "a", "model": "team/gptq", "weight": 0.5},
        {"id": "b", "model": "team/fp8", "weight": 0.25},
    ]
    recipe = family_recipe(base="team/base", sources=sources, steps=["task_arithmetic"])
    job = floor.run(floor.order(recipe, **PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    assert job.result is not None and job.result["commit"] == floor.hub.head(REPO)
    for name, content in undisturbed(floor, recipe).items():
        assert floor.read(REPO, name) == content, name
    base, found = tensors_of(root / "base"), tensors_of(floor.hub.store.root / REPO)
    assert found.keys() == base.keys()
    for name, tensor in base.items():
        before = tensor.float()
        wanted = (
            before + 0.5 * (means_four[name].float() - before) + 0.25 * (means_eight[name].float() - before)
        )
        assert torch.allclose(found[name].float(), wanted, atol=2e-3, rtol=1e-2), name
    assert "quantization_config" not in json.loads(floor.read(REPO, "config.json"))


def awq(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Projections in four bits as AWQ stores them, with zero points, and the numbers they stand for."""
    made, meant = {}, {}
    for name, weight in weights.items():
        if "_proj" not in name:
            made[name] = meant[name] = weight
            continue
        inputs = weight.float().T.reshape(-1, GROUP, weight.shape[0])
        least, most = inputs.amin(1, keepdim=True).clamp(max=0), inputs.amax(1, keepdim=True).clamp(min=0)
        scale = ((most - least) / 15).half()
        zero = (-least / scale.float()).round().clamp(0, 15)
        codes = (inputs / scale.float() + zero).round().clamp(0, 15)
        meant[name] = ((codes - zero) * scale.float()).reshape(-1, weight.shape[0]).T
        stem = name.removesuffix(".weight")
        made[f"{stem}.qweight"] = interleaved(codes.reshape(-1, weight.shape[0]))
        made[f"{stem}.qzeros"] = interleaved(zero.squeeze(1))
        made[f"{stem}.scales"] = scale.squeeze(1)
    return made, meant


def interleaved(codes: Tensor) -> Tensor:
    """Eight outputs a word: the even ones of the eight in its lower half, the odd ones in its upper."""
    eight = codes.long().reshape(len(codes), -1, 8)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return torch.as_tensor(sum(eight[:, :, output] << 4 * at for at, output in enumerate(order))).to(
        torch.int32
    )


def int8(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Projections in eight bits as bitsandbytes stores them, and the numbers they stand for."""
    made, meant = {}, {}
    for name, weight in weights.items():
        made[name] = meant[name] = weight
        if "_proj" in name:
            largest = weight.float().abs().amax(1)
            made[name] = (weight.float() * 127 / largest[:, None]).round().to(torch.int8)
            made[f"{name.removesuffix('.weight')}.SCB"] = largest
            made[f"{name.removesuffix('.weight')}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
            meant[name] = made[name].float() * largest[:, None] / 127
    return made, meant


def nf4(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Projections in four bits as bitsandbytes stores them, their scales in eight, and what they mean."""
    levels, made, meant = torch.linspace(-1, 1, 16), {}, {}
    for name, weight in weights.items():
        if "_proj" not in name:
            made[name] = meant[name] = weight
            continue
        blocks = weight.float().reshape(-1, 64)
        largest = blocks.abs().amax(1)
        offset = float(largest.mean())
        wide = (largest - offset).abs().max().view(1)
        steps = torch.linspace(-1, 1, 256)
        bytes_of = ((largest - offset) / wide * 127.5 + 127.5).round()
        scale = steps[bytes_of.long()] * wide + offset
        codes = ((blocks / scale[:, None] + 1) * 7.5).round().clamp(0, 15).long()
        meant[name] = (levels[codes] * scale[:, None]).view(weight.shape)
        pairs = codes.view(-1, 2)
        said = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape),
                "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}  # fmt: skip
        made |= {
            name: (pairs[:, 0] * 16 + pairs[:, 1]).to(torch.uint8)[:, None],
            f"{name}.absmax": bytes_of.to(torch.uint8),
            f"{name}.quant_map": levels.clone(),
            f"{name}.nested_absmax": wide,
            f"{name}.nested_quant_map": steps.clone(),
            f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(
                list(json.dumps(said).encode()), dtype=torch.uint8
            ),
        }
    return made, meant


def test_awq_int8_and_nf4_models_merge_into_a_published_one_that_says_what_is_lost(floor: Floor) -> None:
    root = floor.hub.store.root / "team"
    kinds: dict[str, tuple[Any, dict[str, Any], str]] = {
        "awq": (
            awq,
            {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"},
            "AWQ (4 bits)",
        ),
        "int8": (int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "INT8"),
        "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes NF4"),
    }
    means = {}
    for name, (make, said, _) in kinds.items():
        coded, means[name] = make(tensors_of(root / "expert1"))
        stored(floor, name, "expert1", coded, said)
    recipe = family_recipe(
        base="team/base",
        sources=[{"id": name, "model": f"team/{name}", "weight": 0.25} for name in kinds],
        steps=["task_arithmetic"],
    )
    job = floor.run(floor.order(recipe, **PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    for name, content in undisturbed(floor, recipe).items():
        assert floor.read(REPO, name) == content, name
    base, found = tensors_of(root / "base"), tensors_of(floor.hub.store.root / REPO)
    assert found.keys() == base.keys()
    for name, tensor in base.items():
        before = tensor.float()
        wanted = before + sum(0.25 * (meant[name].float() - before) for meant in means.values())
        assert torch.allclose(found[name].float(), wanted, atol=2e-3, rtol=1e-2), name
    assert "quantization_config" not in json.loads(floor.read(REPO, "config.json"))
    model = AutoModelForCausalLM.from_pretrained(floor.hub.store.root / REPO, local_files_only=True)
    assert model.config.num_hidden_layers == 6
    assert job.plan is not None
    report, card = json.loads(floor.read(REPO, "merge_report.json")), floor.read(REPO, "README.md").decode()
    for name, (_, _, scheme) in kinds.items():
        plan = [
            each for each in job.plan["findings"] if (each["code"], each["model"]) == ("dequantized", name)
        ]
        assert [scheme in each["message"] for each in plan] == [True], name
        assert "weight is off by up to" in plan[0]["message"], name
        told = [each for each in report["decoded"] if each["model"] == name]
        assert [(each["scheme"], "is off by up to" in each["loss"]) for each in told] == [(scheme, True)]
        assert f"- {name} (" in card and name in floor.read(REPO, "merge_report.html").decode()


def test_a_gguf_file_in_parts_becomes_a_published_model_with_its_tokenizer(floor: Floor) -> None:
    root = floor.hub.store.root / "team"
    said = json.loads((root / "expert1" / "config.json").read_text())
    config = SimpleNamespace(**said, rope_parameters={"rope_theta": 10000.0})
    weights = tensors_of(root / "expert1")
    tokenizer = json.loads((root / "expert1" / "tokenizer.json").read_text())
    special = {each["content"] for each in tokenizer["added_tokens"]}
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)

    def about(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(vocabulary)
        writer.add_token_types([3 if token in special else 1 for token in vocabulary])
        writer.add_token_merges([])

    (root / "small-gguf" / "q8").mkdir(parents=True)
    write(root / "small-gguf" / "q8" / "m.gguf", "llama", weights, config, Q8_0, about=about, split=20)
    files = sorted(path.name for path in (root / "small-gguf" / "q8").iterdir())
    assert len(files) > 1
    recipe = {"sources": [{"id": "a", "model": f"team/small-gguf:q8/{files[0]}"}], "steps": ["passthrough"]}
    job = floor.run(floor.order(recipe, **PUSHED))
    assert job.state == "succeeded", (job.error_code, job.error_detail)
    found = tensors_of(floor.hub.store.root / REPO)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        step = tensor.float().abs().max() / 100
        assert torch.allclose(found[name].float(), tensor.float(), atol=float(step)), name
    out = floor.hub.store.root / REPO
    text = "published, and read back"
    loaded, own = (
        AutoTokenizer.from_pretrained(path, local_files_only=True) for path in (out, root / "expert1")
    )
    assert loaded(text)["input_ids"] == own(text)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert model.config.num_hidden_layers == 6
