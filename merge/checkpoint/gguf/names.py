"""From llama.cpp's names to those of transformers: the families a GGUF file can be merged as."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
LEFT_OUT = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight")
"""Tables that transformers computes from the config."""


@dataclass(frozen=True)
class Family:
    """How one of llama.cpp's architectures differs from the plain case."""

    model_type: str
    architecture: str
    names: Mapping[str, str]
    rotated: bool = False
    """The rows of each head of q and k are stored with the halves of its rotation interleaved."""
    norms_plus_one: bool = False
    """Norm weights are stored one larger."""
    activation: str = "silu"
    tied: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", _LAYERS, rotated=True),
    "mixtral": Family("mixtral", "MixtralForCausalLM", {**_LAYERS, **_MIXTRAL}, rotated=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _LAYERS),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _LAYERS),
    "qwen2moe": Family("qwen2_moe", "Qwen2MoeForCausalLM", _LAYERS),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", _LAYERS),
    "gemma": Family("gemma", "GemmaForCausalLM", _LAYERS, False, True, "gelu_pytorch_tanh", True),
    "gemma2": Family(
        "gemma2", "Gemma2ForCausalLM", {**_LAYERS, **_FOUR_NORMS}, False, True, "gelu_pytorch_tanh", True
    ),
    "gemma3": Family(
        "gemma3_text", "Gemma3ForCausalLM", {**_LAYERS, **_FOUR_NORMS}, False, True, "gelu_pytorch_tanh", True
    ),
    "phi3": Family("phi3", "Phi3ForCausalLM", {**_LAYERS, "ffn_up": "mlp.gate_up_proj"}),
}
"""By ``general.architecture``; ``mixtral`` is what says llama and has experts."""


def transformers_name(name: str, family: Family) -> str | None:
    """The name in transformers, with ``{}`` in place of an expert's number; ``None`` for an unknown one."""
    inside = _LAYER.fullmatch(name)
    if inside is None:
        stem, _, leaf = name.rpartition(".")
        return f"{_OUTER[stem]}.{leaf}" if stem in _OUTER and leaf in ("weight", "bias") else None
    module = family.names.get(inside[2])
    return None if module is None else f"model.layers.{inside[1]}.{module}.{inside[3]}"
