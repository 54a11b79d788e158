"""GGUF files as llama.cpp's converter makes them, of tiny models, by the format's own reference package."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

from tests.merge.arch import zoo

Q8_0 = gguf.GGMLQuantizationType.Q8_0
F32 = gguf.GGMLQuantizationType.F32
_NORMS_PLUS_ONE = ("gemma", "gemma2", "gemma3")
_WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
ARCHITECTURES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LLAMA", _WIDE),
    "mistral": ("llama", "LLAMA", _WIDE),
    "mixtral": ("llama", "LLAMA", _WIDE),
    "qwen2": ("qwen2", "QWEN2", _WIDE),
    "qwen3": ("qwen3", "QWEN3", _WIDE),
    "qwen2_moe": (
        "qwen2moe", "QWEN2MOE", {**_WIDE, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    ),
    "qwen3_moe": ("qwen3moe", "QWEN3MOE", {**_WIDE, "moe_intermediate_size": 32}),
    "gemma": ("gemma", "GEMMA", _WIDE),
    "gemma2": ("gemma2", "GEMMA2", _WIDE),
    "gemma3_text": ("gemma3", "GEMMA3", _WIDE),
    "phi3": ("phi3", "PHI3", _WIDE),
}  # fmt: skip
"""The zoo's name: llama.cpp's, its constant in the package, and sizes that blocks of 32 divide."""


def model_of(name: str, seed: int = 0) -> PreTrainedModel:
    """The zoo's model, wide enough for quantised blocks."""
    kind = zoo.ZOO[name]
    wide = {
        key: value for key, value in ARCHITECTURES[name][2].items() if name != "phi3" or key != "head_dim"
    }
    settings = {key: value for key, value in kind.settings.items() if key != "head_dim"} | wide
    return zoo.made(zoo.Kind(kind.model, kind.config, settings), seed)


def write(
    path: Path,
    name: str,
    tensors: Mapping[str, torch.Tensor],
    config: Any,
    kind: Any = F32,
    *,
    about: Callable[[gguf.GGUFWriter], None] = lambda _: None,
    split: int = 0,
    **more: Any,
) -> Path:
    """Writes the tensors (named as transformers saves them) with the metadata that the converter writes, and
    what ``about`` adds to it; in files of at most ``split`` tensors.
    """
    arch, constant, _ = ARCHITECTURES[name]
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    about(writer)
    _metadata(writer, config, arch)
    for key, value in more.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.UINT32)
    layers = config.num_hidden_layers
    table = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, constant), layers)
    for hf, tensor in stacked(tensors).items():
        stem, _, leaf = hf.rpartition(".")
        stored = table.get_name(stem) if leaf in ("weight", "bias") else table.get_name(hf)
        assert stored is not None, hf
        data = _converted(arch, stored, tensor.float(), config).numpy()
        full = f"{stored}.{leaf}" if leaf in ("weight", "bias") else f"{stored}.weight"
        quantised = data.ndim > 1 and kind != F32
        if quantised:
            writer.add_tensor(full, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(full, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stacked(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Numbered experts as one tensor, as the converter stores them."""
    made: dict[str, torch.Tensor] = {}
    groups: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        head, mark, rest = name.partition(".experts.")
        if mark:
            number, _, part = rest.partition(".")
            assert int(number) == len(groups.setdefault(f"{head}.experts.{part}", []))
            groups[f"{head}.experts.{part}"].append(tensor)
        else:
            made[name] = tensor
    return made | {name: torch.stack(parts) for name, parts in groups.items()}


def _converted(arch: str, stored: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    if arch == "llama" and stored.endswith(("attn_q", "attn_k")):
        heads = config.num_attention_heads if stored.endswith("attn_q") else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape).contiguous()
    if arch in _NORMS_PLUS_ONE and stored.endswith("norm"):
        return tensor + 1
    if stored.endswith("ffn_gate_inp_shexp"):
        return tensor.reshape(-1)
    return tensor.contiguous()


def _metadata(writer: gguf.GGUFWriter, config: Any, arch: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("rope_theta", rope.get("full_attention", {}).get("rope_theta", 1e6)))
    if getattr(config, "sliding_window", None) and arch.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None):
            writer.add_float32(f"{arch}.{key}", getattr(config, key))
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if arch in ("qwen2moe", "qwen3moe"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if arch == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
