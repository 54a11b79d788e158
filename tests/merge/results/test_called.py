"""Names that Transformers has for what files call otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.checkpoint.index import index_folder
from merge.results.called import Piece, called
from tests import tiny

TEXT = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
SIGHT = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
}  # fmt: skip
LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": TEXT,
    "vision_config": SIGHT, "image_token_index": 31,
}  # fmt: skip
OLDER = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}
"""What Transformers put before names until it made one module of tower and text model."""


def older(name: str) -> str:
    return next(old + name[len(new) :] for new, old in OLDER.items() if name.startswith(new))


def test_names_of_a_vision_language_model_are_those_that_it_is_loaded_with(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, LlavaConfig

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(LlavaConfig(**LLAVA))
    now = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    (tmp_path / "config.json").write_text(json.dumps(LLAVA))
    zeros = {older(name): torch.zeros(shape) for name, shape in now.items()}
    save_file(zeros, tmp_path / "model.safetensors")
    assert called(index_folder(tmp_path, "llava")) == {older(name): (Piece(name),) for name in now}


def test_a_head_whose_name_has_nothing_in_common_is_what_is_left_on_both_sides(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    config = GPTNeoXConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                           vocab_size=32, architectures=["GPTNeoXForCausalLM"])  # fmt: skip
    with torch.device("meta"):
        now = AutoModelForCausalLM.from_config(config).state_dict()
    head = next(name for name in now if name in ("lm_head.weight", "embed_out.weight"))
    stored = "lm_head.weight" if head == "embed_out.weight" else "embed_out.weight"
    zeros = {stored if name == head else name: torch.zeros(now[name].shape) for name in now}
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    save_file(zeros, tmp_path / "model.safetensors")
    assert called(index_folder(tmp_path, "neox")) == {stored: (Piece(head),)}


@pytest.mark.parametrize(
    "odd",
    [
        {"architectures": None},
        {"architectures": ["MyOwn"]},
        {"architectures": ["set_seed"]},
        {"model_type": "my_own"},
        {"n_layer": "two"},
        {"n_layer": 10**9},
        {"text_config": {"num_experts": 10**9}},
    ],
)
def test_names_stay_where_transformers_cannot_tell(tmp_path: Path, odd: dict[str, Any]) -> None:
    folder = tiny.gpt2(tmp_path / "gpt2")
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    known = {name: (Piece(f"transformer.{name}"),) for name in bare}
    assert called(index_folder(folder, "gpt2")) == known
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | odd))
    assert called(index_folder(folder, "gpt2")) == {}
