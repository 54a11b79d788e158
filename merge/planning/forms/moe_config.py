"""The config of a mixture of experts, from that of the dense model its layers come from. Loads no torch."""

from collections.abc import Mapping
from typing import Any

from merge.arch.rope import rope_kind, rope_of

_DROPPED = (
    "attention_bias", "layer_types", "max_window_layers", "mlp_bias", "pretraining_tp", "use_sliding_window",
)  # fmt: skip
_DEEPSEEK_CODE = "deepseek-ai/deepseek-moe-16b-base"
DEEPSEEK_CLASSES: Mapping[str, str] = {
    "AutoConfig": f"{_DEEPSEEK_CODE}--configuration_deepseek.DeepseekConfig",
    "AutoModel": f"{_DEEPSEEK_CODE}--modeling_deepseek.DeepseekModel",
    "AutoModelForCausalLM": f"{_DEEPSEEK_CODE}--modeling_deepseek.DeepseekForCausalLM",
}
"""The class that transformers lacks, as ``auto_map`` names it."""
PLAIN_ROPES = ("default", "linear", "dynamic")
"""Rotary embeddings that the code of DeepSeek-MoE knows."""
_EVERY: Mapping[str, Any] = {"rms_norm_eps": 1e-6, "num_key_value_heads": None}
_UNSAID: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_EVERY, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        **_EVERY, "max_position_embeddings": 131072, "num_key_value_heads": 8, "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": {**_EVERY, "max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {**_EVERY, "max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}  # fmt: skip
"""What the class of a dense model takes where its config is silent; that of a mixture takes other numbers."""
_THETA = 10000.0


def mixture_config(
    config: Mapping[str, Any], architecture: str, kind: str, experts: tuple[str, int], active: int
) -> dict[str, Any]:
    """What all mixtures have: ``experts`` is the name and the number of the experts, ``active`` how many of
    them serve a token.
    """
    made = {key: value for key, value in spelt_out(config).items() if key not in _DROPPED}
    name, count = experts
    return made | {
        "architectures": [architecture],
        "model_type": kind,
        name: count,
        "num_experts_per_tok": active,
        "output_router_logits": False,
    }


def spelt_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a dense model with the numbers that it leaves to its class."""
    made = {**_UNSAID.get(str(config.get("model_type")), {}), **config}
    if made.get("num_key_value_heads") is None:
        made["num_key_value_heads"] = config.get("num_attention_heads")
    if rope_of(config).get("rope_theta") is None:
        made["rope_theta"] = _THETA
    return made


def windows(config: Mapping[str, Any], layers: int) -> list[int | None]:
    """How far back each layer of a dense model looks, as its class reads the config; ``None`` for all."""
    kind, types = config.get("model_type"), config.get("layer_types")
    window, first = config.get("sliding_window", 4096), config.get("max_window_layers", 28)
    if kind == "mistral":
        slides = [True] * layers
    elif kind not in ("qwen2", "qwen3") or not config.get("use_sliding_window"):
        slides = [False] * layers
    elif isinstance(types, list):
        slides = [each == "sliding_attention" for each in types[:layers]]
    else:
        slides = [isinstance(first, int) and layer >= first for layer in range(layers)]
    return [window if each and isinstance(window, int) else None for each in slides]


def for_mixtral(made: Mapping[str, Any], config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The part of Mixtral: the window stays that of the dense model."""
    return {**made, "sliding_window": next(iter(windows(config, layers)), None)}


def for_qwen(made: Mapping[str, Any], config: Mapping[str, Any], shared: bool, layers: int) -> dict[str, Any]:
    """The part of the Qwen mixtures: every layer is one; ``shared`` where the family has a shared expert."""
    width, seen = config.get("intermediate_size"), windows(config, layers)
    found = {**made, "moe_intermediate_size": width, "norm_topk_prob": True, "decoder_sparse_step": 1}
    found["mlp_only_layers"] = []
    if any(seen):
        found |= {"use_sliding_window": True, "sliding_window": max(filter(None, seen))}
    if shared:
        found["shared_expert_intermediate_size"] = width
        found["qkv_bias"] = config.get("model_type") == "qwen2"
        found["layer_types"] = ["sliding_attention" if window else "full_attention" for window in seen]
    elif config.get("attention_bias"):
        found["attention_bias"] = True
    return found


def for_deepseek(made: Mapping[str, Any], config: Mapping[str, Any], shared: int) -> dict[str, Any]:
    """The part of DeepSeek-MoE (the first one, of plain attention): every layer is a mixture, and the class
    comes with the named repository, since Transformers has none.

    Its code reads ``rope_theta`` and ``rope_scaling`` as they were written before they became one field.
    """
    found = {
        **made,
        "moe_intermediate_size": config.get("intermediate_size"),
        "n_shared_experts": shared or None,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "scoring_func": "softmax",
    }
    rope = rope_of(config)
    if rope.get("rope_theta") is not None:
        found["rope_theta"] = rope["rope_theta"]
    if rope_kind(config) != "default":
        found["rope_scaling"] = {"type": rope_kind(config), "factor": float(rope.get("factor", 1.0))}
    found.pop("output_router_logits")
    return found
