"""The config of a mixture of experts, from that of the dense model its layers come from. Loads no torch."""

from collections.abc import Mapping
from typing import Any

from merge.arch.rope import rope_kind, rope_of

_DROPPED = ("attention_bias", "mlp_bias", "pretraining_tp", "use_sliding_window", "max_window_layers")
_DEEPSEEK_CODE = "deepseek-ai/deepseek-moe-16b-base"
DEEPSEEK_CLASSES: Mapping[str, str] = {
    "AutoConfig": f"{_DEEPSEEK_CODE}--configuration_deepseek.DeepseekConfig",
    "AutoModel": f"{_DEEPSEEK_CODE}--modeling_deepseek.DeepseekModel",
    "AutoModelForCausalLM": f"{_DEEPSEEK_CODE}--modeling_deepseek.DeepseekForCausalLM",
}
"""The class that transformers lacks, as ``auto_map`` names it."""
PLAIN_ROPES = ("default", "linear", "dynamic")
"""Rotary embeddings that the code of DeepSeek-MoE knows."""


def mixture_config(
    config: Mapping[str, Any], architecture: str, kind: str, experts: tuple[str, int], active: int
) -> dict[str, Any]:
    """What all mixtures have: ``experts`` is the name and the number of the experts, ``active`` how many of
    them serve a token.
    """
    made = {key: value for key, value in config.items() if key not in _DROPPED}
    name, count = experts
    return made | {
        "architectures": [architecture],
        "model_type": kind,
        name: count,
        "num_experts_per_tok": active,
        "output_router_logits": False,
    }


def for_mixtral(made: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of Mixtral: the window stays that of the dense model."""
    return {**made, "sliding_window": config.get("sliding_window")}


def for_qwen(made: Mapping[str, Any], config: Mapping[str, Any], shared: bool) -> dict[str, Any]:
    """The part of the Qwen mixtures: every layer is one; ``shared`` where the family has a shared expert."""
    width = config.get("intermediate_size")
    found = {**made, "moe_intermediate_size": width, "norm_topk_prob": True, "decoder_sparse_step": 1}
    found["mlp_only_layers"] = []
    if shared:
        found["shared_expert_intermediate_size"] = width
        found["qkv_bias"] = config.get("model_type") == "qwen2"
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
