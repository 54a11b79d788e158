"""The tiny checkpoints are real ones: the same each time, and transformers loads them whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (tiny.llama(tmp_path / name, expert=1) / "model.safetensors" for name in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_experts_are_the_base_and_a_small_change(tmp_path: Path) -> None:
    base, expert, other = (load_file(folder / "model.safetensors") for folder in tiny.family(tmp_path, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    change = (expert[name] - base[name]).float()
    assert 0.01 < change.std().item() < 0.03
    assert not torch.equal(expert[name], other[name])


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.moe], ids=["llama", "gpt2", "moe"])
def test_transformers_loads_every_tensor(tmp_path: Path, make: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = make(tmp_path)
    load: Any = AutoModelForCausalLM.from_pretrained
    model, told = load(folder, output_loading_info=True, local_files_only=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = "Any bytes: ä, 漢, \t\n."
    tokens = tokenizer(text, return_tensors="pt")
    assert tokenizer.decode(tokens["input_ids"][0]) == text
    assert torch.isfinite(model(**tokens).logits).all()
