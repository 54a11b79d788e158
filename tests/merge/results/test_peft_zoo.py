"""Adapters of every kind of architecture: PEFT finds each module, and computes what the dense merge does."""

import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge.checkpoint.index import attach, index_adapter_folder, index_folder
from merge.planning.forms.loadable import REMADE, STACKED, refused
from tests import tiny
from tests.merge.arch import zoo
from tests.merge.results.adapters import made, planned

IDS = torch.arange(9, 21)[None]
PIXELS = tiny.noise("pixels", (1, 3, 8, 8), 0)
HEARD = tiny.noise("sound", (1, 8, 32), 0)
INPUTS: Mapping[str, Mapping[str, Tensor]] = {
    "vit": {"pixel_values": PIXELS},
    "swin": {"pixel_values": PIXELS},
    "vit_mae": {"pixel_values": PIXELS, "noise": torch.arange(4.0)[None]},
    "siglip": {"pixel_values": PIXELS, "input_ids": IDS},
    "whisper": {"input_features": HEARD, "decoder_input_ids": IDS},
}
CASES = {
    "vit": ("vit", {}),
    "a module called as another's part": ("siglip", {}),
    "a listener": ("whisper", {}),
    "passed by": ("mamba", {}),
    "router and experts of unequal ranks": ("mixtral", {"router": "lora", "expert": "lora"}),
    "a parameter beside modules": ("vit", {"embed": "save"}),
    "modules in a module": ("siglip", {"head": "save"}),
    "parameters beside LoRAs": ("siglip", {"embed": "lora", "bias": "save"}),
    "dense layers beside experts": ("deepseek_v3", {"router": "lora"}),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """PEFT and Transformers warn of each other; what counts is that no key is missing."""
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*adapter keys")
        yield


def moved(folder: Path, to: Path) -> None:
    """The model with changes of few and unequal ranks in its matrices."""
    shutil.copytree(folder, to)
    tensors = load_file(folder / "model.safetensors")
    for place, (name, tensor) in enumerate(sorted(tensors.items())):
        if tensor.dim() == 2:
            sides = ((tensor.shape[0], place % 3 + 1), (place % 3 + 1, tensor.shape[1]))
            left, right = (tiny.noise(name, side, seed) for seed, side in enumerate(sides))
            tensors[name] = tensor + 0.1 * left @ right
    save_file(tensors, to / "model.safetensors", {"format": "pt"})


def answers(name: str, model: Any) -> Tensor:
    with torch.no_grad():
        found = model.eval()(**INPUTS.get(name, {"input_ids": IDS}))
    wanted: Tensor = found["logits"] if "logits" in found else found["logits_per_image"]
    return wanted


def recipe(**more: Any) -> dict[str, Any]:
    return {"base": "a", "sources": [{"id": "b", "model": "b"}], "steps": ["task_arithmetic"], **more}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_loads_whole(tmp_path: Path, case: str) -> None:
    name, classes = CASES[case]
    loads_whole(tmp_path, name, classes=classes)


ELSEWHERE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "swin": ("SwinForImageClassification", {
        "image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
        "window_size": 2,
    }),
    "vit_mae": ("ViTMAEForPreTraining", {
        **zoo.ZOO["vit"].settings, "decoder_num_attention_heads": 4, "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 24,
    }),
    "nemotron_h": ("NemotronHForCausalLM", {
        **zoo.ZOO["llama"].settings, "layers_block_type": ["mamba", "attention", "mlp"], "mamba_num_heads": 8,
        "mamba_head_dim": 4, "n_groups": 1, "ssm_state_size": 4, "chunk_size": 4,
        "moe_shared_expert_intermediate_size": 7688,
    }),
    "gte": ("GteForMaskedLM", dict(zoo.ZOO["bert"].settings)),
}  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_adapter_has_transformers_names_and_finds_the_files_own_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, settings = ELSEWHERE[name]
    kind = zoo.Kind(model, f"{model.partition('For')[0]}Config", settings)
    monkeypatch.setitem(zoo.ZOO, name, kind)
    loads_whole(tmp_path, name, save=["*.0.mlp.up_gate_proj.weight"])  # GTE's are two modules
    made(
        tmp_path, {"base": "a", "sources": [{"id": "b", "adapter": "out"}], "steps": ["passthrough"]}, "again"
    )
    changed, again = (load_file(tmp_path / key / "model.safetensors") for key in ("dense", "again"))
    assert all(torch.allclose(again[tensor], changed[tensor], atol=1e-3) for tensor in changed)


@pytest.mark.parametrize(
    "out", [["*experts.1.*"], ["*.w2.weight", "*.0.*.1.w1.weight"], ["*layers.1*experts*"]]
)
def test_an_adapter_without_some_experts_loads_whole(tmp_path: Path, out: list[str]) -> None:
    loads_whole(tmp_path, "mixtral", classes={"expert": "lora"}, exclude=out)


def loads_whole(tmp_path: Path, name: str, **result: Any) -> None:
    zoo.save(name, 0, tmp_path / "a")
    moved(tmp_path / "a", tmp_path / "b")
    result = {"form": "adapter", "error": 1e-4, **result}
    told = made(tmp_path, recipe(result=result)).manifest["adapter"]
    shutil.copytree(tmp_path / "a", tmp_path / "dense")
    weights, changed = (load_file(tmp_path / key / "model.safetensors") for key in "ab")
    weights |= {f"{path}.weight": changed[f"{path}.weight"] for path in told["modules"]}
    weights |= {name: changed[name] for name in told["saved"]}
    save_file(weights, tmp_path / "dense" / "model.safetensors", {"format": "pt"})
    base, dense = (zoo.load(name, tmp_path / key)[0] for key in ("a", "dense"))
    before, wanted = answers(name, base), answers(name, dense)
    found = answers(name, PeftModel.from_pretrained(base, tmp_path / "out"))
    assert (found - wanted).norm() < 2e-3 * (wanted - before).norm()
    attach(index_folder(tmp_path / "a", "a"), index_adapter_folder(tmp_path / "out", "out"))


@pytest.mark.parametrize(("name", "left"), [("mamba", {"out_proj", "dt_proj"}), ("opt", {"embed_positions"})])
def test_what_would_not_count_as_a_lora_is_left_out_and_told(
    tmp_path: Path, name: str, left: set[str]
) -> None:
    zoo.save(name, 0, tmp_path / "a")
    moved(tmp_path / "a", tmp_path / "b")
    plan = planned(tmp_path, recipe(result={"form": "adapter", "rank": 2, "classes": {"embed": "lora"}}))
    told = [each.tensor for each in plan.findings if each.tensor and "tied" not in each.message]
    assert {name.split(".")[-2] for name in told} == left


def test_experts_that_peft_does_not_find_are_told(tmp_path: Path) -> None:
    result = {"form": "adapter", "rank": 2, "classes": {"expert": "lora"}}
    for name, codes in (("mixtral", []), ("qwen2_moe", ["adapter_experts"])):
        root = tmp_path / name
        zoo.save(name, 0, root / "a")
        moved(root / "a", root / "b")
        assert [each.code for each in planned(root, recipe(result=result)).findings] == codes


def test_mixtures_are_those_that_peft_stacks() -> None:
    from peft.utils import transformers_weight_conversion as peft

    known = peft._MODEL_TO_CONVERSION_PATTERN
    assert all(known[each] in peft._MOE_FUSED_TARGETS for each in STACKED)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("encoder.layers.0.wqkv.weight", "kimi_k25"),
        ("layers.0.mlp.gate_proj.weight", "minimax_m3_vl"),
        ("mask_decoder.iou_token.weight", "sam"),
    ],
)
def test_what_would_be_passed_by_is_no_lora(name: str, kind: str) -> None:
    assert refused(name, kind, ())
    assert not refused(name.replace("iou_token", "proj"), "llama", ())


def test_matrices_that_become_others_are_those_that_transformers_remakes() -> None:
    from transformers import conversion_mapping as mapping
    from transformers.core_model_loading import Chunk, Split, WeightConverter

    others = {
        (kind, source.replace("\\", "").removesuffix(".weight").strip(".").rpartition(".")[2])
        for kind, steps in mapping._build_checkpoint_conversion_mapping().items()
        for step in steps
        if isinstance(step, WeightConverter)
        and not all(isinstance(op, Chunk | Split) for op in step.operations)
        for source in step.source_patterns
        if not re.search(r"experts|conv1d|embedding|bias|_weight|moe\.|weight_1", source)
    }
    assert others == {(kind, part) for kind, parts in REMADE.items() for part in parts}


@pytest.mark.parametrize(
    ("name", "targets", "bias"),
    [
        ("vit", ["q_proj", "o_proj", "fc1", "fc2"], "none"),
        ("mixtral", ["gate"], "none"),
        ("bert", ["key"], "all"),
    ],
)
def test_an_adapter_by_newer_names_is_read(tmp_path: Path, name: str, targets: list[str], bias: str) -> None:
    zoo.save(name, 0, tmp_path / "a")
    torch.manual_seed(3)
    settings: dict[str, Any] = {"r": 4, "target_modules": targets, "init_lora_weights": False, "bias": bias}
    tuned = get_peft_model(zoo.load(name, tmp_path / "a")[0], LoraConfig(**settings))
    wanted = answers(name, tuned)
    tuned.save_pretrained(str(tmp_path / "lora"))
    made(tmp_path, recipe(sources=[{"id": "b", "adapter": "lora"}]))
    found = answers(name, zoo.load(name, tmp_path / "out")[0])
    assert torch.allclose(found, wanted, atol=1e-5)
