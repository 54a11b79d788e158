"""Tiny models of many architectures, made by Transformers itself, and what a plain whole run says of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from merge.checkpoint.index import index_folder
from merge.learn.batches import Batch, batches_of
from merge.learn.samples import Samples, samples_of
from merge.learn.skeleton import Skeleton
from tests import tiny

TEXTS = (
    "The walk goes on from block to block, one at a time. " * 6,
    "Bytes are tokens here; 1 + 2 = 3. " * 9,
)
_SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_WORDS = {"vocab_size": tiny.VOCAB, "pad_token_id": 259, "bos_token_id": 256, "eos_token_id": 257}
_VISION = {**_SIZE, "image_size": 8, "patch_size": 4}


def _llama() -> Any:
    config = transformers.LlamaConfig(**_SIZE, **_WORDS, num_key_value_heads=2, max_position_embeddings=64)
    return transformers.LlamaForCausalLM(config)


def _tied() -> Any:
    config = transformers.Qwen2Config(**_SIZE, **_WORDS, num_key_value_heads=2, tie_word_embeddings=True)
    return transformers.Qwen2ForCausalLM(config)


def _gemma2() -> Any:
    config = transformers.Gemma2Config(
        **_SIZE, **_WORDS, num_key_value_heads=2, head_dim=4, sliding_window=8, query_pre_attn_scalar=4
    )
    return transformers.Gemma2ForCausalLM(config)


def _gpt2() -> Any:
    words = {key: value for key, value in _WORDS.items() if key != "pad_token_id"}
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=64, **words)
    return transformers.GPT2LMHeadModel(config)


def _bert() -> Any:
    config = transformers.BertConfig(
        **_SIZE, vocab_size=tiny.VOCAB, pad_token_id=259, max_position_embeddings=64
    )
    return transformers.BertForMaskedLM(config)


def _roberta() -> Any:
    config = transformers.RobertaConfig(
        **_SIZE, vocab_size=tiny.VOCAB, pad_token_id=1, max_position_embeddings=34
    )
    return transformers.RobertaForMaskedLM(config)


def _classifier() -> Any:
    config = transformers.BertConfig(
        **_SIZE, vocab_size=tiny.VOCAB, pad_token_id=259, max_position_embeddings=64, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


def _t5() -> Any:
    config = transformers.T5Config(
        vocab_size=tiny.VOCAB, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, pad_token_id=259,
        decoder_start_token_id=259, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def _bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=tiny.VOCAB, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64,
        pad_token_id=259, bos_token_id=256, eos_token_id=257, decoder_start_token_id=257,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


def _vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**_VISION, num_labels=3))


def _clip() -> Any:
    text = {**_SIZE, **_WORDS, "max_position_embeddings": 64}
    config = transformers.CLIPConfig(text_config=text, vision_config=dict(_VISION), projection_dim=12)
    return transformers.CLIPModel(config)


def _mixtral() -> Any:
    config = transformers.MixtralConfig(
        **_SIZE,
        **_WORDS,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
    )
    return transformers.MixtralForCausalLM(config)


def _qwen_moe() -> Any:
    config = transformers.Qwen2MoeConfig(
        **_SIZE, **_WORDS, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=12, shared_expert_intermediate_size=20,
    )  # fmt: skip
    return transformers.Qwen2MoeForCausalLM(config)


def _gpt_oss() -> Any:
    config = transformers.GptOssConfig(
        **_SIZE, **_WORDS, num_key_value_heads=2, head_dim=4, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=8,
    )  # fmt: skip
    return transformers.GptOssForCausalLM(config)


def _albert() -> Any:
    config = transformers.AlbertConfig(
        **_SIZE, vocab_size=tiny.VOCAB, embedding_size=8, pad_token_id=259, max_position_embeddings=64
    )
    return transformers.AlbertForMaskedLM(config)


def _deberta() -> Any:
    """Its encoder takes the weights of an embedding that it never calls."""
    config = transformers.DebertaV2Config(
        **_SIZE, **_WORDS, max_position_embeddings=64, relative_attention=True, pos_att_type=["p2c", "c2p"],
        position_buckets=8,
    )  # fmt: skip
    return transformers.DebertaV2ForMaskedLM(config)


def _siglip() -> Any:
    """Its head is torch's own attention, which takes the weights of a layer in it."""
    text = {**_SIZE, **_WORDS, "max_position_embeddings": 64}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=dict(_VISION)))


def _xlnet() -> Any:
    """Its attention is made of parameters that are on the CPU from the beginning, without values."""
    config = transformers.XLNetConfig(vocab_size=tiny.VOCAB, d_model=16, n_layer=2, n_head=4, d_inner=24)
    return transformers.XLNetLMHeadModel(config)


def _funnel() -> Any:
    """Its blocks are lists of layers."""
    config = transformers.FunnelConfig(
        vocab_size=tiny.VOCAB, block_sizes=[1, 1], d_model=16, n_head=4, d_head=4, d_inner=24,
        num_decoder_layers=1, pad_token_id=259,
    )  # fmt: skip
    return transformers.FunnelForMaskedLM(config)


def _falcon_h1() -> Any:
    """The model computes a buffer of every layer."""
    config = transformers.FalconH1Config(
        **_SIZE, **_WORDS, num_key_value_heads=2, head_dim=4, mamba_d_ssm=16, mamba_n_heads=4, mamba_d_head=4,
        mamba_d_state=4, mamba_chunk_size=8, ssm_in_multiplier=0.5,
    )  # fmt: skip
    return transformers.FalconH1ForCausalLM(config)


def _mamba2() -> Any:
    """Its config has an infinity."""
    config = transformers.Mamba2Config(
        hidden_size=16, num_hidden_layers=2, state_size=4, num_heads=4, head_dim=8, n_groups=1, chunk_size=8,
        **_WORDS,
    )  # fmt: skip
    return transformers.Mamba2ForCausalLM(config)


def _masked_autoencoder() -> Any:
    """It draws what it hides."""
    decoder = {f"decoder_{name}": size for name, size in _SIZE.items()}
    return transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**_VISION, **decoder))


def _segmenter() -> Any:
    """Pictures throughout: norms of their second axis, and a convolution that is turned around."""
    taken = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "use_auxiliary_head": False}
    config = transformers.BeitConfig(**{**_VISION, **taken}, num_labels=3)
    return transformers.BeitForSemanticSegmentation(config)


def _resnet() -> Any:
    """It takes images of any size, and its config tells none."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=3, layer_type="basic"
    )
    return transformers.ResNetForImageClassification(config)


def _reward() -> Any:
    """A decoder that classifies and has no token for padding."""
    words = {key: value for key, value in _WORDS.items() if key != "pad_token_id"}
    config = transformers.LlamaConfig(**_SIZE, **words, num_key_value_heads=2, num_labels=1)
    return transformers.LlamaForSequenceClassification(config)


def _bart_classifier() -> Any:
    config = _bart().config
    config.num_labels = 3
    return transformers.BartForSequenceClassification(config)


def _jetmoe() -> Any:
    """Its attention is a mixture too, of experts as wide as high."""
    words = {**_WORDS, "num_key_value_heads": 2, "kv_channels": 8, "max_position_embeddings": 64}
    size = {name: value for name, value in _SIZE.items() if name != "num_attention_heads"}
    config = transformers.JetMoeConfig(**size, **words, num_local_experts=4, num_experts_per_tok=2)
    return transformers.JetMoeForCausalLM(config)


def _qwen3_vl_moe() -> Any:
    text = {
        **_SIZE, **_WORDS, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 12,
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 4, "patch_size": 4,
        "out_hidden_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=vision)
    return transformers.Qwen3VLMoeForConditionalGeneration(config)


OTHERS: Mapping[str, Callable[[], Any]] = {
    "roberta": _roberta, "masked_autoencoder": _masked_autoencoder, "segmenter": _segmenter,
    "resnet": _resnet, "jetmoe": _jetmoe, "qwen3_vl_moe": _qwen3_vl_moe,
}  # fmt: skip
"""Those that are only measured for one thing each."""
MAKERS: Mapping[str, Callable[[], Any]] = {
    "llama": _llama, "tied": _tied, "gemma2": _gemma2, "gpt2": _gpt2, "bert": _bert, "t5": _t5, "bart": _bart,
    "classifier": _classifier, "vit": _vit, "clip": _clip, "mixtral": _mixtral, "qwen_moe": _qwen_moe,
    "gpt_oss": _gpt_oss, "albert": _albert, "deberta": _deberta, "siglip": _siglip, "xlnet": _xlnet,
    "funnel": _funnel, "falcon_h1": _falcon_h1, "mamba2": _mamba2, "reward": _reward,
    "bart_classifier": _bart_classifier,
}  # fmt: skip


def make(folder: Path, kind: str) -> Path:
    """A folder with a tiny model of random weights large enough to matter, and a byte-level tokenizer."""
    torch.manual_seed(7)
    model = {**MAKERS, **OTHERS}[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tiny.write_tokenizer(folder)
    return folder


def whole(folder: Path, **options: Any) -> Any:
    """The model loaded by Transformers, all of it, in float32."""
    architecture = index_folder(folder).config["architectures"][0]
    options = {"dtype": torch.float32, "local_files_only": True, **options}
    return getattr(transformers, architecture).from_pretrained(folder, **options).eval()


def samples(tokens: int = 24, **settings: Any) -> Samples:
    """A small calibration set."""
    return samples_of(TEXTS, tokens=tokens, **settings)


def batches(folder: Path, given: Samples) -> tuple[Batch, ...]:
    """What the model of the folder is called with."""
    return batches_of(Skeleton(index_folder(folder)), folder, given).every


def inputs_of_linears(model: Any, every: tuple[Batch, ...]) -> dict[str, Tensor]:
    """All that each linear layer (and Conv1D, router, gain) was given: float64 (tokens, channels), by
    module path.
    """
    seen: dict[str, list[Tensor]] = {}
    handles = []

    def keep(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            seen.setdefault(path, []).append(given.detach().reshape(-1, given.shape[-1]).double())

        return hook

    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() < 3 and not isinstance(module, nn.Embedding):
            handles.append(module.register_forward_pre_hook(keep(path), with_kwargs=True))
    with torch.no_grad():
        for batch in every:
            model(**batch.inputs)
    for handle in handles:
        handle.remove()
    return {path: torch.cat(parts) for path, parts in seen.items()}
