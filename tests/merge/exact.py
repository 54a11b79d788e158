"""Models whose weights are fractions made of integers alone, so that every machine makes the same bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from merge.checkpoint.index import ModelIndex, index_folder
from merge.kernels.keyed import Draws, key_of
from tests.tiny import write_tensors

SHAPES: Mapping[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (700, 128),
    "model.layers.0.self_attn.q_proj.weight": (128, 128),
    "model.layers.0.mlp.up_proj.weight": (1100, 128),
    "model.layers.0.input_layernorm.weight": (128,),
    "model.layers.1.self_attn.q_proj.weight": (128, 128),
    "model.layers.1.mlp.up_proj.weight": (1100, 128),
    "model.layers.1.input_layernorm.weight": (128,),
    "model.norm.weight": (128,),
    "lm_head.weight": (700, 128),
}
CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False,
    "dtype": "bfloat16", "auto_map": {"AutoModel": "remote.Code"}, "_name_or_path": "/somewhere",
}  # fmt: skip
TENSORS = len(SHAPES)


def write(
    folder: Path,
    model: str,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    *,
    dtype: torch.dtype = torch.bfloat16,
    config: Mapping[str, Any] | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
    shards: int = 1,
) -> Path:
    """A model folder: noise of its own on top of what all of them share."""
    tensors = {}
    for name, shape in shapes.items():
        common = Draws(key_of("base", name), 0, shape).uniform() - 0.5
        own = Draws(key_of(model, name), 0, shape).uniform() - 0.5
        tensors[name] = (common if model == "base" else common + own / 16).to(dtype)
    write_tensors(folder, tensors | dict(extra or {}), shards)
    (folder / "config.json").write_text(json.dumps(dict(CONFIG) | dict(config or {})))
    return folder


def family(root: Path, names: tuple[str, ...] = ("base", "a", "b", "c"), **options: Any) -> dict[str, Path]:
    """Folders by name."""
    return {name: write(root / name, name, **options) for name in names}


def indices(folders: Mapping[str, Path]) -> dict[str, ModelIndex]:
    """What the headers say, labelled by name."""
    return {name: index_folder(folder, name) for name, folder in folders.items()}
