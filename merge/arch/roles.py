"""What a tensor is, told from its name, its shape and the model's config. No table of architectures.

Names follow a handful of habits (``model.layers.3.mlp.up_proj.weight``, ``h.3.attn.c_attn.bias``), so the
class, the layer and the ties of a tensor can be read off them, for architectures nobody has listed.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["embed", "head", "norm", "bias", "linear", "conv", "router", "expert", "buffer"]
Place = Literal["before", "inside", "after"]

_LAYER_LISTS = frozenset(
    {
        "layers",
        "layer",
        "h",
        "blocks",
        "block",
        "resblocks",
        "stages",
        "transformer_blocks",
        "encoders",
        "decoders",
    }
)
_LAYER = re.compile(r"(?:^|\.)([a-z_]+)\.(\d+)(?=\.)")
_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|original_inv_freq|position_ids|token_type_ids|masked_bias|num_batches_tracked|running_mean"
    r"|running_var|rotary_emb\..*|attn\.bias|attention\.bias|relative_position_index)$"
)
_EMBEDS = re.compile(
    r"(^|\.)(embed_tokens|embed_in|wte|wpe|word_embeddings|position_embeddings?|token_type_embeddings|tok_embeddings"
    r"|embed_positions|embeddings?|shared|cls_token|class_embedding"
    r"|pos_embed|mask_token|dist_token|register_tokens|distillation_token|relative_attention_bias)(\.|$)"
)
_HEADS = re.compile(
    r"(^|\.)(lm_head|embed_out|output_projection|score|classifier|cls|qa_outputs|head|fc_out|visual_projection"
    r"|text_projection)\.(.*\.)?(weight|bias)$|^output\.weight$|^fc\.(weight|bias)$"
)
_NORMS = re.compile(
    r"(norm|(^|[._])ln(_|\d|\.|$)|layer_?norm|(^|[._])bn\d*\.|batch_?norm|rms)", re.IGNORECASE
)
_ROUTERS = re.compile(r"(^|\.)(gate|router|gate_proj_router|switch|router\.classifier|wg)\.(weight|bias)$")
_EXPERTS = re.compile(r"(^|\.)(experts|expert|local_experts)(\.|$)")
_AFTER = re.compile(
    r"(^|\.)(lm_head|final|norm|ln_f|ln_post|post_layernorm|layernorm|final_layer_?norm|pooler|head)"
)
_BEFORE = re.compile(r"(^|\.)(embed|ln_pre|pre_layrnorm|pre_layernorm|patch|conv1$|conv1\.|stem)")

_CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_INTEGER_DTYPES = frozenset({"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"})


def role_of(name: str, shape: tuple[int, ...], config: Mapping[str, Any], dtype: str | None = None) -> Role:
    """The class of a tensor. Integer tensors (by ``dtype``, where given) and known buffers are ``buffer``."""
    if dtype in _INTEGER_DTYPES or (_BUFFERS.search(name) and not _learned_bias(name, shape)):
        return "buffer"
    if _EXPERTS.search(name):
        return "expert"
    inside = layer_of(name) is not None
    if (
        _ROUTERS.search(name)
        and inside
        and ("moe" in name or "mlp.gate." in name or "router" in name or _moe(config))
    ):
        return "router"
    if _NORMS.search(_module(name)) and len(shape) <= 1:
        return "norm"
    if not inside and _HEADS.search(name):
        return "head"
    if (
        "patch_embed" not in name
        and _EMBEDS.search(name)
        and (not inside or name.endswith("relative_attention_bias.weight"))
    ):
        return "embed"
    if len(shape) <= 1:
        return "bias"
    return "conv" if len(shape) >= 3 and name.endswith("weight") else "linear"


def _learned_bias(name: str, shape: tuple[int, ...]) -> bool:
    """A causal mask is also called ``attn.bias``, but it has four dimensions."""
    return name.endswith(("attn.bias", "attention.bias")) and len(shape) != 4


def _moe(config: Mapping[str, Any]) -> bool:
    return any(config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts"))


def _module(name: str) -> str:
    return name.rpartition(".")[0] + "."


def layer_of(name: str) -> int | None:
    """Index of the layer the tensor belongs to, or ``None`` outside the layers."""
    found = tower_and_layer(name)
    return None if found is None else found[1]


def tower_and_layer(name: str) -> tuple[str, int] | None:
    """The list of layers (its path) and the index in it: the outermost numbered list that is named so."""
    for match in _LAYER.finditer(name):
        if match[1] in _LAYER_LISTS:
            return name[: match.start(2) - 1], int(match[2])
    return None


def place_of(name: str, role: Role) -> Place:
    """Whether a tensor comes before, in, or after the layers."""
    if tower_and_layer(name) is not None:
        return "inside"
    if role in ("embed", "buffer") or _BEFORE.search(name):
        return "before"
    return "after" if role == "head" or _AFTER.search(name) else "before"


@dataclass(frozen=True)
class Towers:
    """The lists of layers of a model (a vision and a text tower, say) and how long each is."""

    lengths: Mapping[str, int]

    @classmethod
    def of(cls, names: Iterable[str]) -> "Towers":
        """Finds them in the tensor names."""
        lengths: dict[str, int] = {}
        for name in names:
            found = tower_and_layer(name)
            if found is not None:
                lengths[found[0]] = max(lengths.get(found[0], 0), found[1] + 1)
        return cls(lengths)

    def depth(self, name: str, role: Role, outer: Literal["position", "zero"] = "position") -> float:
        """Place on a depth curve, 0 to 1: layer/(layers-1) of the tensor's tower; 1 where it has one layer.

        Outside the layers: 0 before them; after them 1, or 0 where ``outer`` is ``zero``.
        """
        found = tower_and_layer(name)
        if found is None:
            return 1.0 if outer == "position" and place_of(name, role) == "after" else 0.0
        length = self.lengths.get(found[0], found[1] + 1)
        return found[1] / (length - 1) if length > 1 else 1.0


def tied_names(config: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, str]:
    """Head tensors that are the embedding under a second name: head -> embedding, where config says so.

    Only heads that are stored beside their embedding are listed; a tied head that is not stored needs no
    decision.
    """
    present = set(names)
    text = config.get("text_config")
    tied = config.get(
        "tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    )
    if tied is None:
        tied = config.get("model_type") in _TIED_BY_DEFAULT
    if not tied:
        return {}
    heads = [name for name in present if re.search(r"(^|\.)(lm_head|embed_out)\.weight$", name)]
    embeds = sorted(
        name
        for name in present
        if re.search(r"(^|\.)(embed_tokens|embed_in|wte|shared|word_embeddings)\.weight$", name)
    )
    return {head: embeds[0] for head in sorted(heads) if embeds}


_TIED_BY_DEFAULT = frozenset(
    {"gpt2", "gemma", "gemma2", "gemma3", "gemma3_text", "t5", "bloom", "opt", "cohere", "cohere2"}
)


def is_conv1d(name: str, config: Mapping[str, Any]) -> bool:
    """True for weights stored as (in, out): the ``Conv1D`` modules of GPT-2 and its kin."""
    parts = name.split(".")
    return config.get("model_type") in _CONV1D_TYPES and len(parts) > 1 and parts[-2] in _CONV1D_MODULES
