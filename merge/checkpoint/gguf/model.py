"""A GGUF file as a model of transformers: its tensors under their names, its config from the metadata."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from merge import file_errors
from merge.checkpoint.gathering import Decoding, rounding
from merge.checkpoint.gguf.header import GgufHeader, GgufTensor
from merge.checkpoint.gguf.names import FAMILIES, LEFT_OUT, Family, transformers_name
from merge.checkpoint.gguf.types import TYPES
from merge.checkpoint.header import MAX_TENSORS, Coded, TensorInfo

_PLAIN = frozenset({"F32", "F16", "BF16"})


def family_of(file: str, metadata: Mapping[str, Any]) -> tuple[str, Family]:
    """The name the metadata's keys begin with, and the family; ``GgufUnsupported`` for an unknown one."""
    named = metadata.get("general.architecture")
    key = "mixtral" if named == "llama" and metadata.get("llama.expert_count") else str(named)
    if key not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise file_errors.GgufUnsupported(
            f"{file} holds a {str(named)[:40]!r}; what can be merged is {known}."
        )
    return str(named), FAMILIES[key]


def logical_tensors(file: str, header: GgufHeader) -> tuple[dict[str, TensorInfo], Decoding | None]:
    """The tensors as floats under transformers' names, in the file's order."""
    named, family = family_of(file, header.metadata)
    dtype = _dtype(header)
    made: dict[str, TensorInfo] = {}
    for name, tensor in header.tensors.items():
        if LEFT_OUT.fullmatch(name):
            continue
        target = transformers_name(name, family)
        if target is None:
            raise file_errors.GgufUnsupported(
                f"{name} in {file} has no counterpart in a {family.architecture}: it cannot be merged."
            )
        settings = _settings(named, family, name, tensor, header.metadata)
        for full, info in _expanded(target, tensor, settings, dtype):
            if full in made:
                raise file_errors.GgufUnsupported(f"{name} in {file} is {full} a second time.")
            if len(made) == MAX_TENSORS:  # a stack without entries may have any number of experts
                raise file_errors.TooManyTensors(
                    f"{file} holds more than {MAX_TENSORS} tensors, experts counted one by one ({name})."
                )
            made[full] = info
    return made, _decoding(header)


def config_from(file: str, header: GgufHeader, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """What ``config.json`` would say, as far as the metadata tells; defaults of transformers for the rest."""
    metadata = header.metadata
    named, family = family_of(file, metadata)

    def said(key: str) -> Any:
        return metadata.get(f"{named}.{key}")

    def number(key: str) -> int:
        found = said(key)
        found = max(found) if isinstance(found, list) and found else found
        if type(found) is not int or found < 1:
            raise file_errors.GgufMalformed(f"{file} does not say its {named}.{key}.")
        return found

    if "model.embed_tokens.weight" not in tensors:
        raise file_errors.GgufMalformed(f"{file} holds no token_embd.weight: it is no whole model.")
    heads, width = number("attention.head_count"), number("embedding_length")
    head, turned = said("attention.key_length") or width // heads, said("rope.dimension_count")
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length") if said("feed_forward_length") else None,
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv")
        if said("attention.head_count_kv")
        else heads,
        "head_dim": head,
        "rms_norm_eps": said("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": number("context_length"),
        "rope_theta": said("rope.freq_base") or 10000.0,
        "rope_scaling": _rope_scaling(said),
        "sliding_window": said("attention.sliding_window"),
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
        "tie_word_embeddings": family.tied or "lm_head.weight" not in tensors,
        "attn_logit_softcapping": said("attn_logit_softcapping"),
        "final_logit_softcapping": said("final_logit_softcapping"),
        "dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[_dtype(header)],
        **{f"{each}_token_id": _token(metadata, names) for each, names in _TOKENS.items()},
        **_experts(family, said),
    }
    config["hidden_activation" if "gemma" in named else "hidden_act"] = family.activation
    partly = isinstance(turned, int) and isinstance(head, int) and 0 < turned < head
    if partly and family.model_type == "phi3":  # the others turn whole heads
        config["partial_rotary_factor"] = turned / head
    if family.model_type == "llama" and "model.layers.0.self_attn.q_proj.bias" in tensors:
        config["attention_bias"] = True
    return {key: value for key, value in config.items() if value is not None}


def rope_is_tabled(header: GgufHeader) -> bool:
    """Whether the file holds a table of rotations instead of the numbers in a config that lead to it."""
    return any(LEFT_OUT.fullmatch(name) for name in header.tensors)


_TOKENS = {"bos": ("bos",), "eos": ("eos",), "pad": ("padding", "pad")}


def _token(metadata: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((metadata[k] for n in names if (k := f"tokenizer.ggml.{n}_token_id") in metadata), None)


def _rope_scaling(said: Any) -> dict[str, Any] | None:
    kind = said("rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return None
    scaling = {"rope_type": kind, "factor": said("rope.scaling.factor") or 1.0}
    original = said("rope.scaling.original_context_length")
    return scaling | ({"original_max_position_embeddings": original} if original else {})


def _experts(family: Family, said: Any) -> dict[str, Any]:
    if not said("expert_count"):
        return {}
    own = "num_local_experts" if family.model_type == "mixtral" else "num_experts"
    return {
        own: said("expert_count"),
        "num_experts_per_tok": said("expert_used_count"),
        "moe_intermediate_size": said("expert_feed_forward_length"),
        "shared_expert_intermediate_size": said("expert_shared_feed_forward_length"),
        "norm_topk_prob": True if family.model_type == "qwen3_moe" else None,
    }


def _dtype(header: GgufHeader) -> str:
    """What the decoded tensors are listed as: bfloat16, or what most of a file of plain floats is in."""
    counts: Counter[str] = Counter()
    for tensor in header.tensors.values():
        counts[TYPES[tensor.type].name] += prod(tensor.shape)
    main = counts.most_common(1)[0][0] if counts else "BF16"
    return main if set(counts) <= _PLAIN else "BF16"


def _decoding(header: GgufHeader) -> Decoding | None:
    used = {TYPES[tensor.type] for tensor in header.tensors.values()}
    quantised = sorted((kind for kind in used if kind.bits), key=lambda kind: (kind.bits, kind.name))
    if not quantised:
        return None
    return Decoding(f"GGUF ({', '.join(kind.name for kind in quantised)})", rounding(quantised[0].bits))


def _settings(
    named: str, family: Family, name: str, tensor: GgufTensor, metadata: Mapping[str, Any]
) -> dict[str, int]:
    settings = {"type": tensor.type}
    stem = name.split(".")
    if family.rotated and len(stem) == 4 and stem[2] in ("attn_q", "attn_k"):
        rows = tensor.shape[0]
        count = metadata.get(f"{named}.attention.head_count{'_kv' if stem[2] == 'attn_k' else ''}")
        count = metadata.get(f"{named}.attention.head_count") if count is None else count
        heads = count[int(stem[1])] if isinstance(count, list) and int(stem[1]) < len(count) else count
        if type(heads) is not int or heads < 1 or rows % heads or rows // heads % 2:
            raise file_errors.GgufMalformed(
                f"{name} has {rows} rows, which are not the rows of {heads!r} heads."
            )
        settings["head"] = rows // heads
    if family.norms_plus_one and name.endswith("norm.weight"):
        settings["shift"] = -1
    return settings


def _expanded(
    target: str, tensor: GgufTensor, settings: Mapping[str, int], dtype: str
) -> Iterator[tuple[str, TensorInfo]]:
    """The tensor itself, or its slices where experts are stacked: transformers' files number them."""
    data, shape = tensor.info, tensor.shape
    if "{}" not in target:
        whole = (1, *shape) if target.endswith("shared_expert_gate.weight") and len(shape) == 1 else shape
        yield target, _info(target, whole, data, settings, dtype)
        return
    if len(shape) != 3:
        raise file_errors.GgufUnsupported(f"{data.name} in {data.file} is no stack of experts.")
    size = data.nbytes // max(1, shape[0])
    for expert in range(shape[0]):
        begin = data.begin + expert * size
        part = replace(data, shape=(shape[1], data.shape[1]), begin=begin, end=begin + size)
        name = target.format(expert)
        yield name, _info(name, shape[1:], part, settings, dtype)


def _info(
    name: str, shape: tuple[int, ...], data: TensorInfo, settings: Mapping[str, int], dtype: str
) -> TensorInfo:
    coded = Coded("gguf", {"data": data}, settings)
    return TensorInfo(name, dtype, shape, data.file, data.begin, data.end, coded)
