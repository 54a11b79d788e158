"""One tiny random model of each architecture, made and saved by transformers itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

VOCAB = 48
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_PLAIN = {key: value for key, value in _TEXT.items() if key != "head_dim"}
_ENCODER: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
_BOTH: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 3, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
_MOE: dict[str, Any] = {**_TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}


@dataclass(frozen=True)
class Kind:
    """A model class, its config class and the settings that make it tiny."""

    model: str
    config: str
    settings: Mapping[str, Any]


ZOO: Mapping[str, Kind] = {
    "llama": Kind("LlamaForCausalLM", "LlamaConfig", _TEXT),
    "mistral": Kind("MistralForCausalLM", "MistralConfig", _TEXT),
    "qwen2": Kind("Qwen2ForCausalLM", "Qwen2Config", {**_TEXT, "tie_word_embeddings": True}),
    "qwen3": Kind("Qwen3ForCausalLM", "Qwen3Config", _TEXT),
    "gemma": Kind("GemmaForCausalLM", "GemmaConfig", _TEXT),
    "gemma2": Kind("Gemma2ForCausalLM", "Gemma2Config", _TEXT),
    "gemma3_text": Kind("Gemma3ForCausalLM", "Gemma3TextConfig", _TEXT),
    "gemma3": Kind("Gemma3ForConditionalGeneration", "Gemma3Config", {
        "text_config": _TEXT, "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 1, "image_token_index": 7, "boi_token_index": 5, "eoi_token_index": 6,
    }),
    "phi3": Kind("Phi3ForCausalLM", "Phi3Config", _TEXT),
    "gpt2": Kind("GPT2LMHeadModel", "GPT2Config", {
        "vocab_size": VOCAB, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32, "bos_token_id": 1,
        "eos_token_id": 2,
    }),
    "gpt_neox": Kind("GPTNeoXForCausalLM", "GPTNeoXConfig", {
        **_ENCODER, "bos_token_id": 1, "eos_token_id": 2,
    }),
    "opt": Kind("OPTForCausalLM", "OPTConfig", {
        "vocab_size": VOCAB, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 32, "word_embed_proj_dim": 16, "pad_token_id": 0,
    }),
    "mixtral": Kind("MixtralForCausalLM", "MixtralConfig", {**_TEXT, "num_local_experts": 4}),
    "qwen2_moe": Kind("Qwen2MoeForCausalLM", "Qwen2MoeConfig", {
        **_MOE, "shared_expert_intermediate_size": 12,
    }),
    "qwen3_moe": Kind("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**_MOE, "norm_topk_prob": True}),
    "deepseek_v3": Kind("DeepseekV3ForCausalLM", "DeepseekV3Config", {
        **_PLAIN, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "moe_intermediate_size": 8, "first_k_dense_replace": 1, "q_lora_rank": 8,
        "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4,
    }),
    "gpt_oss": Kind("GptOssForCausalLM", "GptOssConfig", {**_TEXT, "num_local_experts": 4}),
    "t5": Kind("T5ForConditionalGeneration", "T5Config", {
        "vocab_size": VOCAB, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 3, "num_heads": 4,
    }),
    "bart": Kind("BartForConditionalGeneration", "BartConfig", {**_BOTH, "max_position_embeddings": 32}),
    "whisper": Kind("WhisperForConditionalGeneration", "WhisperConfig", {
        **_BOTH, "max_source_positions": 16, "max_target_positions": 16, "num_mel_bins": 8,
    }),
    "bert": Kind("BertForMaskedLM", "BertConfig", _ENCODER),
    "roberta": Kind("RobertaForMaskedLM", "RobertaConfig", _ENCODER),
    "modernbert": Kind("ModernBertForMaskedLM", "ModernBertConfig", {
        **_ENCODER, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    }),
    "vit": Kind("ViTForImageClassification", "ViTConfig", _VISION),
    "clip": Kind("CLIPModel", "CLIPConfig", {
        "text_config": {**_ENCODER, "projection_dim": 8, "eos_token_id": 2},
        "vision_config": {**_VISION, "projection_dim": 8}, "projection_dim": 8,
    }),
    "siglip": Kind("SiglipModel", "SiglipConfig", {
        "text_config": {**_ENCODER, "projection_size": 16}, "vision_config": _VISION,
    }),
    "dinov2": Kind("Dinov2ForImageClassification", "Dinov2Config", {**_VISION, "mlp_ratio": 2}),
    "llava": Kind("LlavaForConditionalGeneration", "LlavaConfig", {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {**_VISION, "model_type": "clip_vision_model"}, "image_token_id": 7,
    }),
    "qwen2_vl": Kind("Qwen2VLForConditionalGeneration", "Qwen2VLConfig", {
        "text_config": {**_PLAIN, "rope_parameters": _ROPE},
        "vision_config": {"depth": 3, "embed_dim": 16, "hidden_size": 16, "num_heads": 4, "mlp_ratio": 2,
                          "patch_size": 4},
        "image_token_id": 7, "video_token_id": 8, "vision_start_token_id": 9, "vision_end_token_id": 10,
    }),
    "resnet": Kind("ResNetForImageClassification", "ResNetConfig", {
        "embedding_size": 4, "hidden_sizes": [8, 8], "depths": [2, 2], "layer_type": "basic", "num_labels": 3,
    }),
    "mamba": Kind("MambaForCausalLM", "MambaConfig", {
        "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 3, "state_size": 4, "conv_kernel": 4,
        "time_step_rank": 4,
    }),
}  # fmt: skip


def make(name: str, seed: int) -> PreTrainedModel:
    """The model of that name with weights (and float buffers) drawn from ``seed``."""
    return made(ZOO[name], seed)


def made(kind: Kind, seed: int) -> PreTrainedModel:
    """A model of that kind; see ``make``."""
    config_of: Callable[..., PretrainedConfig] = getattr(transformers, kind.config)
    model_of: Callable[..., PreTrainedModel] = getattr(transformers, kind.model)
    model = model_of(config_of(**kind.settings)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (parameter.dim() == 1))
        for path, buffer in model.named_buffers():
            if path.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
            elif path.endswith("num_batches_tracked"):
                buffer.fill_(seed + 1)
    return model


def save(name: str, seed: int, folder: Path) -> PreTrainedModel:
    """Makes a model, saves it, and gives it back."""
    model = make(name, seed)
    model.save_pretrained(folder)
    return model


def load(name: str, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A saved model as transformers reads it, and what it says of keys that do not fit."""
    model_of: Any = getattr(transformers, ZOO[name].model)
    loaded: tuple[PreTrainedModel, dict[str, Any]] = model_of.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, dtype=torch.float32
    )
    return loaded
