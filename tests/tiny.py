"""Tiny checkpoints made in milliseconds: real layouts, real names, weights drawn from a seed.

``expert=0`` is the base of a family; every other number is that base plus its own small change, so that
task vectors exist. Everything is written directly, without building a model.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, ...]]
VOCAB = 260
SPECIAL = ("<s>", "</s>", "<unk>", "<pad>")


def llama(folder: Path, *, expert: int = 0, tied: bool = False, layers: int = 2, hidden: int = 16,
          vocab: int = VOCAB, tokenizer: bool = True, **options: Any) -> Path:  # fmt: skip
    """A Llama that transformers loads, with a byte-level tokenizer."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": hidden // 4, "vocab_size": vocab,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": tied, "bos_token_id": 256,
        "eos_token_id": 257, "pad_token_id": 259, "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        shapes |= _llama_attention(f"model.layers.{layer}", hidden)
        shapes |= {
            f"model.layers.{layer}.mlp.gate_proj.weight": (2 * hidden, hidden),
            f"model.layers.{layer}.mlp.up_proj.weight": (2 * hidden, hidden),
            f"model.layers.{layer}.mlp.down_proj.weight": (hidden, 2 * hidden),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    write_model(folder, config, shapes, expert=expert, **options)
    if tokenizer:
        write_tokenizer(folder)
    return folder


def moe(
    folder: Path, *, expert: int = 0, layers: int = 2, hidden: int = 16, experts: int = 4, **options: Any
) -> Path:
    """A Mixtral-like mixture of experts, with routers and numbered experts."""
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": hidden // 4, "vocab_size": VOCAB, "num_local_experts": experts,
        "num_experts_per_tok": 2, "tie_word_embeddings": False, "max_position_embeddings": 128,
        "sliding_window": None, "bos_token_id": 256, "eos_token_id": 257,
    }  # fmt: skip
    shapes: Shapes = {"model.embed_tokens.weight": (VOCAB, hidden)}
    for layer in range(layers):
        shapes |= _llama_attention(f"model.layers.{layer}", hidden)
        block = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{block}.gate.weight"] = (experts, hidden)
        for number in range(experts):
            shapes[f"{block}.experts.{number}.w1.weight"] = (2 * hidden, hidden)
            shapes[f"{block}.experts.{number}.w2.weight"] = (hidden, 2 * hidden)
            shapes[f"{block}.experts.{number}.w3.weight"] = (2 * hidden, hidden)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (VOCAB, hidden)}
    write_model(folder, config, shapes, expert=expert, **options)
    write_tokenizer(folder)
    return folder


def gpt2(folder: Path, *, expert: int = 0, layers: int = 2, hidden: int = 16, **options: Any) -> Path:
    """A GPT-2: Conv1D weights stored as (in, out), biases, a tied head that is not stored."""
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": hidden, "n_layer": layers,
        "n_head": 4,
        "n_positions": 64, "n_ctx": 64, "vocab_size": VOCAB, "bos_token_id": 256, "eos_token_id": 257,
    }  # fmt: skip
    top = "transformer"
    shapes: Shapes = {f"{top}.wte.weight": (VOCAB, hidden), f"{top}.wpe.weight": (64, hidden)}
    for layer in range(layers):
        block = f"{top}.h.{layer}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (hidden,), f"{block}.{norm}.bias": (hidden,)}
        for module, rows, columns in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden),
            ("mlp.c_proj", 4 * hidden, hidden),
        ):
            shapes |= {f"{block}.{module}.weight": (rows, columns), f"{block}.{module}.bias": (columns,)}
    shapes |= {f"{top}.ln_f.weight": (hidden,), f"{top}.ln_f.bias": (hidden,)}
    write_model(folder, config, shapes, expert=expert, **options)
    write_tokenizer(folder)
    return folder


def vit(
    folder: Path, *, expert: int = 0, layers: int = 2, hidden: int = 16, labels: int = 3, **options: Any
) -> Path:
    """A ViT image classifier: a patch convolution, class token, biases and a head."""
    config = {
        "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 2 * hidden,
        "image_size": 8,
        "patch_size": 4, "num_channels": 3, "id2label": {str(i): f"label {i}" for i in range(labels)},
        "label2id": {f"label {i}": i for i in range(labels)},
    }  # fmt: skip
    shapes: Shapes = {
        "vit.embeddings.cls_token": (1, 1, hidden),
        "vit.embeddings.position_embeddings": (1, 5, hidden),
        "vit.embeddings.patch_embeddings.projection.weight": (hidden, 3, 4, 4),
        "vit.embeddings.patch_embeddings.projection.bias": (hidden,),
    }
    for layer in range(layers):
        block = f"vit.encoder.layer.{layer}"
        for module, out, inner in (
            ("attention.attention.query", hidden, hidden),
            ("attention.attention.key", hidden, hidden),
            ("attention.attention.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", 2 * hidden, hidden),
            ("output.dense", hidden, 2 * hidden),
        ):
            shapes |= {f"{block}.{module}.weight": (out, inner), f"{block}.{module}.bias": (out,)}
        for norm in ("layernorm_before", "layernorm_after"):
            shapes |= {f"{block}.{norm}.weight": (hidden,), f"{block}.{norm}.bias": (hidden,)}
    shapes |= {"vit.layernorm.weight": (hidden,), "vit.layernorm.bias": (hidden,)}
    shapes |= {"classifier.weight": (labels, hidden), "classifier.bias": (labels,)}
    write_model(folder, config, shapes, expert=expert, **options)
    return folder


def family(root: Path, experts: int = 3, make: Callable[..., Path] = llama, **options: Any) -> list[Path]:
    """A base and its experts in ``root``: [base, expert1, expert2, ...]."""
    names = ["base", *(f"expert{number}" for number in range(1, experts + 1))]
    return [make(root / name, expert=number, **options) for number, name in enumerate(names)]


def lora(folder: Path, shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0, r: int = 4, alpha: float = 8,
         rank_pattern: Mapping[str, int] | None = None, dtype: torch.dtype = torch.float32,
         prefix: str = "base_model.model.", saved: Mapping[str, torch.Tensor] | None = None,
         **config: Any) -> Path:  # fmt: skip
    """A PEFT-style LoRA. ``shapes`` maps module names to (out, in); a module whose name holds ``embed`` or
    ``wte`` is (vocabulary, width) and gets embedding factors. ``saved`` are whole tensors beside the
    factors.
    """
    patterns = dict(rank_pattern or {})
    tensors: dict[str, torch.Tensor] = {}
    for module, (out, inner) in shapes.items():
        rank = next(
            (rank for key, rank in patterns.items() if module == key or module.endswith("." + key)), r
        )
        if "embed" in module or "wte" in module:
            names, a, b = ("lora_embedding_A", "lora_embedding_B"), (rank, out), (inner, rank)
        else:
            names, a, b = ("lora_A.weight", "lora_B.weight"), (rank, inner), (out, rank)
        for name, shape in zip(names, (a, b), strict=True):
            tensors[f"{prefix}{module}.{name}"] = (noise(f"{module}.{name}", shape, seed) * 0.1).to(dtype)
    tensors |= {prefix + name: tensor.contiguous() for name, tensor in (saved or {}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    document = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": alpha, "lora_dropout": 0.0,
        "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True, "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None, "rank_pattern": patterns, "alpha_pattern": {},
        "base_model_name_or_path": None,
        "target_modules": sorted({module.rpartition(".")[2] for module in shapes}), **config,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(document, indent=2))
    return folder


def write_model(folder: Path, config: Mapping[str, Any], shapes: Shapes, *, expert: int = 0, seed: int = 0,
                delta: float = 0.02, dtype: torch.dtype = torch.bfloat16,
                shards: int = 1) -> Path:  # fmt: skip
    """Writes config and weights; the weights depend on ``seed``, ``expert`` and each tensor's name only."""
    tensors = {name: weight(name, shape, seed, expert, delta).to(dtype) for name, shape in shapes.items()}
    full = {**config, "dtype": str(dtype).removeprefix("torch."), "transformers_version": "5.0.0"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(full, indent=2))
    write_tensors(folder, tensors, shards)
    return folder


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1) -> None:
    """Writes one file, or ``shards`` files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        return
    names = list(tensors)
    size = math.ceil(len(names) / shards)
    placed: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number * size : (number + 1) * size]}
        save_file(part, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def weight(
    name: str, shape: tuple[int, ...], seed: int = 0, expert: int = 0, delta: float = 0.02
) -> torch.Tensor:
    """One float32 tensor: norms about 1, biases small, matrices scaled by their width, plus the expert's
    change.
    """
    scale = 0.02 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
    base = noise(name, shape, seed) * scale
    if len(shape) == 1 and name.endswith("weight"):
        base += 1
    return base if expert == 0 else base + noise(name, shape, seed + 1000 * expert) * delta


def noise(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal noise that depends on the name and the seed only."""
    generator = torch.Generator().manual_seed((zlib.crc32(name.encode()) << 20) + seed)
    return torch.randn(shape, generator=generator)


def write_tokenizer(folder: Path, extra: Iterable[str] = ()) -> None:
    """A byte-level tokenizer: 256 bytes, four special tokens, and any ``extra`` ones; every text
    round-trips.
    """
    vocab = {char: code for code, char in enumerate(_byte_characters())}
    vocab |= {token: 256 + number for number, token in enumerate((*SPECIAL, *extra))}
    added = [
        {"id": vocab[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for token in (*SPECIAL, *extra)
    ]  # fmt: skip
    bytes_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": bytes_level, "post_processor": None, "decoder": bytes_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": False,
                  "vocab": vocab, "merges": []},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>", "model_max_length": 128, "clean_up_tokenization_spaces": False,
    }, indent=2))  # fmt: skip


def _byte_characters() -> list[str]:
    """The printable stand-in of each byte in byte-level tokenizers."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    return [chr(code) if code in plain else chr(next(shifted)) for code in range(256)]


def _llama_attention(block: str, hidden: int) -> Shapes:
    return {
        f"{block}.input_layernorm.weight": (hidden,),
        f"{block}.self_attn.q_proj.weight": (hidden, hidden),
        f"{block}.self_attn.k_proj.weight": (hidden // 2, hidden),
        f"{block}.self_attn.v_proj.weight": (hidden // 2, hidden),
        f"{block}.self_attn.o_proj.weight": (hidden, hidden),
        f"{block}.post_attention_layernorm.weight": (hidden,),
    }
