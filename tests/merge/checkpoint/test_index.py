"""A model is known from its headers and small files, wherever those come from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge.checkpoint.index import index_folder, index_model, read_folder
from merge.checkpoint.tokenizer import tokenizer_facts
from merge.checkpoint.wanted import wanted_texts, weight_files
from merge.file_errors import NoWeights
from tests import tiny


def test_a_folder_and_fetched_bytes_give_the_same_index(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path, shards=3)
    fetched = index_model("org/m", *read_folder(folder, "org/m"))
    assert fetched == index_folder(folder, "org/m")
    assert len(fetched.shards) == 3


def test_an_adapter_in_the_place_of_a_model_is_told_apart(tmp_path: Path) -> None:
    tiny.lora(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": (16, 16)})
    with pytest.raises(NoWeights, match="lora: This is a LoRA adapter, not a model"):
        index_folder(tmp_path / "lora", "lora")


def test_counts_are_those_of_the_weights(tmp_path: Path) -> None:
    index = index_folder(tiny.gpt2(tmp_path))
    assert index.parameters == 11776
    assert index.bytes == 2 * 11776
    assert index.config["model_type"] == "gpt2"


def test_the_label_does_not_change_the_digest_but_a_header_does(tmp_path: Path) -> None:
    plain = tiny.llama(tmp_path / "a")
    again = tiny.llama(tmp_path / "b")
    deeper = tiny.llama(tmp_path / "c", layers=3)
    assert index_folder(plain, "x").digest == index_folder(again, "y").digest
    assert index_folder(plain).digest != index_folder(deeper).digest


def test_only_what_indexing_needs_is_fetched() -> None:
    names = [
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "README.md",
        "x/config.json",
        "a.bin",
    ]
    assert wanted_texts(names) == ["config.json", "model.safetensors.index.json", "tokenizer.json"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "consolidated.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (
            ["model.safetensors.index.json", "model-00001-of-00001.safetensors", "consolidated.safetensors"],
            ["model-00001-of-00001.safetensors"],
        ),
        (
            ["diffusion_pytorch_model.safetensors", "x/model.safetensors"],
            ["diffusion_pytorch_model.safetensors"],
        ),
        (["model.safetensors", "adapter_model.safetensors", "config.json"], ["model.safetensors"]),
        (["adapter_config.json", "adapter_model.safetensors"], ["adapter_model.safetensors"]),
        (["weights.safetensors"], ["weights.safetensors"]),
    ],
)
def test_the_weight_files_are_found_among_others(names: list[str], expected: list[str]) -> None:
    assert weight_files(names) == expected


def test_the_shard_index_decides_where_it_is_known() -> None:
    names = ["model.safetensors.index.json", "odd.safetensors", "model-00001-of-00001.safetensors"]
    index = json.dumps({"weight_map": {"a": "odd.safetensors"}}).encode()
    assert weight_files(names, {"model.safetensors.index.json": index}) == ["odd.safetensors"]


def test_equal_vocabularies_have_equal_digests_however_written(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    plain = {**whole["model"]["vocab"]}
    fast = tokenizer_facts({"tokenizer.json": json.dumps(whole, indent=3).encode()})
    slow = tokenizer_facts({"vocab.json": json.dumps(plain).encode(), "merges.txt": b""})
    assert fast is not None
    assert slow is not None
    assert fast.digest == slow.digest
    assert fast.vocab_size == 260


def test_an_added_token_changes_the_vocabulary(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path / "a")
    tiny.write_tokenizer(tmp_path / "b", extra=["<|im_start|>"])
    one, two = (
        tokenizer_facts({"tokenizer.json": (tmp_path / f / "tokenizer.json").read_bytes()}) for f in "ab"
    )
    assert one is not None
    assert two is not None
    assert (one.vocab_size, two.vocab_size) == (260, 261)
    assert one.digest != two.digest


def test_a_chat_template_is_noticed_and_a_binary_model_has_no_size() -> None:
    facts = tokenizer_facts({"tokenizer.model": b"\x0a", "chat_template.jinja": b"{{ x }}"})
    assert facts is not None
    assert facts.chat_template
    assert facts.vocab_size is None
    assert tokenizer_facts({"config.json": b"{}"}) is None


def test_a_quantised_model_says_so(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path)
    assert index_folder(folder).quantization is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
    )
    assert index_folder(folder).quantization == "gptq"


def test_indexing_and_translating_load_no_torch() -> None:
    code = (
        "import sys, merge.checkpoint.index, merge.checkpoint.layout\n"
        "import merge.planning.resolve, merge.mergekit.translate\n"
        "assert 'torch' not in sys.modules and 'safetensors' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("lora_unet_mid_to_q.lora_down.weight", "lora_unet_mid_to_q.lora_up.weight"),
        ("transformer.blocks.0.to_q.lora_A.weight", "transformer.blocks.0.to_q.lora_B.weight"),
        ("unet.mid.attn1.processor.to_q_lora.down.weight", "unet.mid.attn1.processor.to_q_lora.up.weight"),
        ("model.layers.0.q_proj.lora_a", "model.layers.0.q_proj.lora_b"),
        ("lycoris_mid_to_q.lokr_w1", "lycoris_mid_to_q.lokr_w2_a"),
    ],
    ids=["kohya", "diffusers", "older diffusers", "MLX", "LyCORIS"],
)
def test_factors_of_a_lora_are_no_model(tmp_path: Path, first: str, second: str) -> None:
    """They were taken for a model's weights: A and B (and alpha) were averaged each by itself."""
    factors = {
        first: torch.ones(2, 4),
        second: torch.ones(4, 2),
        f"{first.rsplit('.', 2)[0]}.alpha": torch.ones(1),
    }
    save_file(factors, tmp_path / "style.safetensors")
    for path in (tmp_path, tmp_path / "style.safetensors"):
        with pytest.raises(NoWeights, match=rf"a: {first} and most others are factors of a LoRA.*PEFT"):
            index_folder(path, "a")


def test_a_model_that_holds_its_own_loras_is_one(tmp_path: Path) -> None:
    """Phi-4-multimodal's files have two beside every matrix."""
    names = ["base_layer", *(f"lora_{part}.{kind}" for part in "AB" for kind in ("speech", "vision"))]
    save_file({f"q_proj.{name}.weight": torch.ones(4, 4) for name in names}, tmp_path / "model.safetensors")
    assert len(index_folder(tmp_path).tensors) == 5
