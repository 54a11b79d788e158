"""Synthetic Llama-shaped models: a base and experts near it, written block by block, and LoRA adapters."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from merge.checkpoint.layout import index_file, index_json, plan_shards
from merge.checkpoint.writer import ShardWriter

EXPERTS = ("a", "b", "c")
LAYERS = 22
NOISE = (1 << 22) + 17
SHARD_BYTES = 500_000_000


def make_family(folder: Path, parameters: int, layers: int = LAYERS) -> int:
    """Writes ``base`` and the experts (base plus noise of 1e-3); gives the parameters of each. Fewer layers
    are as wide as those of a whole model.
    """
    shapes = llama_shapes(parameters, layers)
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0))
    for number, name in enumerate(("base", *EXPERTS)):
        write_model(folder / name, shapes, number, noise)
    return sum(rows * columns for rows, columns in shapes.values())


def make_adapters(folder: Path, rank: int) -> tuple[str, ...]:
    """Writes a LoRA adapter of every projection of ``base`` beside each expert; gives their names."""
    shapes = json.loads((folder / "base" / "config.json").read_bytes())
    width, inner, layers = (
        shapes[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    made = _layers(width, inner, layers)
    names = tuple(f"lora-{name}" for name in EXPERTS)
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(number)
        tensors: dict[str, torch.Tensor] = {}
        for module, (rows, columns) in made.items():
            if rows > 1:
                stem = f"base_model.model.{module.removesuffix('.weight')}.lora_"
                a = torch.randn(rank, columns, generator=generator) / columns**0.5
                b = torch.randn(rows, rank, generator=generator) / 50
                tensors |= {f"{stem}A.weight": a.bfloat16(), f"{stem}B.weight": b.bfloat16()}
        (folder / name).mkdir(exist_ok=True)
        save_file(tensors, folder / name / "adapter_model.safetensors")
        told = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
        (folder / name / "adapter_config.json").write_text(json.dumps(told))
    return names


def llama_shapes(parameters: int, layers: int = LAYERS) -> dict[str, tuple[int, int]]:
    """Matrices of a Llama of about so many parameters: 22 layers, vocabulary 32000 where that fits; and so
    many of its layers.
    """
    vocabulary = 32000 if parameters > 3e8 else 8000
    width = 64
    while _count(width + 64, vocabulary) <= parameters:
        width += 64
    inner = width * 11 // 4
    layered = _layers(width, inner, layers)
    ends = {"model.norm.weight": (1, width), "lm_head.weight": (vocabulary, width)}
    return {"model.embed_tokens.weight": (vocabulary, width)} | layered | ends


def _layers(width: int, inner: int, layers: int) -> dict[str, tuple[int, int]]:
    keys = width // 8
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (1, width),
            f"{prefix}mlp.down_proj.weight": (width, inner),
            f"{prefix}mlp.gate_proj.weight": (inner, width),
            f"{prefix}mlp.up_proj.weight": (inner, width),
            f"{prefix}post_attention_layernorm.weight": (1, width),
            f"{prefix}self_attn.k_proj.weight": (keys, width),
            f"{prefix}self_attn.o_proj.weight": (width, width),
            f"{prefix}self_attn.q_proj.weight": (width, width),
            f"{prefix}self_attn.v_proj.weight": (keys, width),
        }
    return shapes


def _count(width: int, vocabulary: int) -> int:
    each = 3 * width * (width * 11 // 4) + 2 * width * width + 2 * width * (width // 8) + 2 * width
    return LAYERS * each + 2 * vocabulary * width + width


def write_model(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    number: int,
    noise: torch.Tensor,
    *,
    config: bool = True,
) -> None:
    """One bf16 model in shards of 500 MB, of repeated noise; with a ``config`` that transformers accepts."""
    folder.mkdir()
    tensors = [(name, "BF16", shape[1:] if shape[0] == 1 else shape) for name, shape in shapes.items()]
    shards = plan_shards(tensors, SHARD_BYTES)
    place = 0
    for shard in shards:
        with ShardWriter(folder / shard.file, shard) as writer:
            for name, info in shard.entries.items():
                for first, block in _blocks(info.numel, place, number, noise):
                    writer.write_at(name, first, block)
                place += info.numel
            writer.finish()
    if len(shards) > 1:
        (folder / index_file(shards)).write_bytes(index_json(shards))
    if config:
        write_config(folder, shapes)


def write_config(folder: Path, shapes: Mapping[str, tuple[int, int]]) -> None:
    """What transformers wants to know of a Llama with these matrices."""
    (folder / "config.json").write_text(_config(shapes))


def _config(shapes: Mapping[str, tuple[int, int]]) -> str:
    vocabulary, width = shapes["model.embed_tokens.weight"]
    inner = shapes["model.layers.0.mlp.gate_proj.weight"][0]
    layers = sum(name.endswith("mlp.gate_proj.weight") for name in shapes)
    return (
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", '
        f'"hidden_size": {width}, "intermediate_size": {inner}, "num_hidden_layers": {layers}, '
        f'"num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": {vocabulary}, '
        '"tie_word_embeddings": false}'
    )


def _blocks(total: int, place: int, number: int, noise: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    size = 1 << 20
    for first in range(0, total, size):
        count = min(size, total - first)
        values = noise[(at := (place + first) % (NOISE - size)) : at + count] * 0.02
        if number:
            shift = (at * 7 + number * 1_234_567) % (NOISE - size)
            values = values + noise[shift : shift + count] * 1e-3
        yield first, values.to(torch.bfloat16)
