"""Models whose weights are fractions made of integers alone, so that every machine makes the same bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from merge.checkpoint.index import ModelIndex, index_folder
from merge.kernels.keyed import Draws, key_of
from tests import tiny
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


def adapter(folder: Path, name: str, rank: int, scale: float = 1.0) -> Path:
    """A LoRA over every projection, its factors fractions made of integers too."""
    modules = [path.removesuffix(".weight") for path in SHAPES if "_proj" in path]
    shapes = {module: (SHAPES[f"{module}.weight"][0], SHAPES[f"{module}.weight"][1]) for module in modules}
    tiny.lora(folder, shapes, r=rank, alpha=2 * rank)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        for part, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            full = f"base_model.model.{module}.lora_{part}.weight"
            tensors[full] = (Draws(key_of(name, full), 0, shape).uniform() - 0.5) * scale
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def indices(folders: Mapping[str, Path]) -> dict[str, ModelIndex]:
    """What the headers say, labelled by name."""
    return {name: index_folder(folder, name) for name, folder in folders.items()}
