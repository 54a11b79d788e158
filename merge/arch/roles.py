"""What a tensor is, told from its name, its shape and the model's config. No table of architectures.

Names follow a handful of habits (``model.layers.3.mlp.up_proj.weight``, ``h.3.attn.c_attn.bias``), so the
class, the layer and the ties of a tensor can be read off them, for architectures nobody has listed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from merge.arch.ties import tied_names
from merge.recipe.parts import Role

__all__ = [
    "INTEGERS",
    "Place",
    "Role",
    "Towers",
    "is_conv1d",
    "is_turned",
    "layer_of",
    "place_of",
    "role_of",
    "running_statistic",
    "stack_of",
    "tied_names",
    "tower_and_layer",
]

Place = Literal["before", "inside", "after"]

_LAYER = re.compile(
    r"(?:^|\.)(?:(?:[a-z_]+_)?(?:layers?|blocks?|stages?)|h|resblocks|encoders|decoders)\.(\d+)(?=\.)"
)
_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|original_inv_freq|position_ids|token_type_ids|masked_bias|num_batches_tracked|running_mean"
    r"|running_var|rotary_emb\..*|attn\.bias|attention\.bias|relative_position_index|final_logits_bias"
    r"|causal_mask|std_bias|std_scale)$"
)
_RUNNING = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
_EMBEDS = re.compile(
    r"(^|[._])emb(ed(d?ing)?s?|s)?(?=[._]|$)|embed(d?ing)?s?\.|(^|\.)([wp]te|wpe|w|shared|relative_attention_bias)\."
    r"|(^|\.)\w+_tokens?$|relative_position_bias_table|(^|\.)(class|pos|position(al)?|patch|token|word)_embed\w*$"
)
_NOT_EMBED = re.compile(
    r"(proj\w*|dense\w*|linear\w*|transform\w*|conv\w*|norm\w*|layer_?norm\w*|merger|mlp|fc\d*|combine\w*)$",
    re.IGNORECASE,
)
_HEADS = re.compile(
    r"(^|\.)(lm_heads?|embed_out|output_projection|score|classifier|cls|predictions|qa_outputs|heads?|ctc_head"
    r"|fc_out|visual_projection|text_projection|proj_out|generator_lm_head|vocab_projector|lm_loss|pred_layer)\."
    r"|^(output|fc|decoder)\.(weight|bias)$"
)
_NORMS = re.compile(r"norm|(^|[._])ln(_|\d|\.|$)|(^|[._])bn\d*(\.|$)|rms", re.IGNORECASE)
_ROUTERS = re.compile(
    r"(^|\.)((gate|router|switch|wg)\.(weight(_1)?|bias)|e_score_correction_bias|router\.\w+\.(weight|bias)"
    r"|shared_expert_gate\.weight|\w*router\w*)$"
)
_EXPERTS = re.compile(r"(^|\.)(experts|expert|local_experts)(\.(?!router\.)|$)")
_AFTER = re.compile(
    r"(^|\.)(final|norm|ln_f|ln_post|post_layernorm|layer_?norm\.|final_layer_?norm|pooler|heads?\.|logit_\w+)"
)
_BEFORE = re.compile(
    r"embed|(^|\.)(ln_pre|pre_layrnorm|pre_layernorm|patch|conv\d\.|stem|\w*projector)(\.|_|$)"
)

_CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_TURNED_TYPES = frozenset({
    "gpt_oss", "openai_privacy_filter", "llama4", "llama4_text", "qwen3_vl_moe", "qwen3_vl_moe_text", "aria",
    "aria_text",
})  # fmt: skip
_TURNED_ROUTERS = frozenset({"ernie4_5_vl_moe", "ernie4_5_moe_vl"})
_PILED = re.compile(r"\.experts\.mlp\.([vw]1|w2)$")
_ROUTER = re.compile(r"\.mlp\.gate\.weight(_1)?$")
_INTO_EXPERTS = ("gate_up_proj", "fc1.weight")
_TURNED_STACK = re.compile(r"\.experts\.(gate_up_proj|down_proj|fc[12]\.weight)$")
INTEGERS = frozenset({"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"})
_VECTORS = frozenset({"A_log", "D", "A", "dt_bias", "gamma", "beta", "alpha", "layer_scale", "sinks"})


def role_of(name: str, shape: tuple[int, ...], config: Mapping[str, Any], dtype: str | None = None) -> Role:
    """The class of a tensor. Integer tensors (by ``dtype``, where given) and known buffers are ``buffer``.

    ``bias`` also holds what is added or multiplied entry by entry: layer scales, sinks, state decays.
    """
    module, _, leaf = name.rpartition(".")
    if dtype in INTEGERS or (_BUFFERS.search(name) and not _learned_bias(name, shape)):
        return "buffer"
    if len(shape) <= 1 and leaf in ("weight", "bias", "scale") and _is_norm(module):
        return "norm"
    if _EXPERTS.search(name) or (len(shape) == 3 and _moe(config) and _in_moe(module)):
        return "expert"
    inside = _LAYER.search(name) is not None
    if (
        inside
        and _ROUTERS.search(name)
        and (_moe(config) or re.search(r"moe|router|(mlp|mixer|ffn)\.gate\.", name))
    ):
        return "router"
    if not inside and _HEADS.search(name) and len(shape) < 4:
        return "head"
    if _is_embedding(name, module, leaf, shape, inside):
        return "embed"
    if len(shape) >= 3 and leaf in ("weight", "original1", "weight_v"):
        return "conv"
    if len(shape) <= 1 or leaf == "bias" or leaf in _VECTORS or max(shape) == 0:
        return "norm" if leaf == "weight" and len(shape) == 1 and shape[0] > 1 else "bias"
    return "linear"


def _is_norm(module: str) -> bool:
    """By the module's own name: what holds it may be called after its norm (``roberta_prelayernorm``)."""
    own = re.sub(r"(\.\d+)+$", "", module).rpartition(".")[2]
    return _NORMS.search(own) is not None


def _is_embedding(name: str, module: str, leaf: str, shape: tuple[int, ...], inside: bool) -> bool:
    if len(shape) <= 1 and leaf in ("weight", "bias"):
        return False
    if inside:
        return name.endswith(("relative_attention_bias.weight", "relative_position_bias_table"))
    if leaf in ("weight", "weight_g"):
        return len(shape) == 2 and _EMBEDS.search(name) is not None and not _NOT_EMBED.search(module)
    return leaf != "bias" and _EMBEDS.search(name) is not None


def _learned_bias(name: str, shape: tuple[int, ...]) -> bool:
    """A causal mask is also called ``attn.bias``, but it has four dimensions."""
    return name.endswith(("attn.bias", "attention.bias")) and len(shape) != 4


def running_statistic(name: str) -> bool:
    """Whether a buffer is what batch norm has counted: each model has its own, and none is wrong."""
    return _RUNNING.search(name) is not None


def _moe(config: Mapping[str, Any]) -> bool:
    inner = config.get("text_config")
    both = (config, inner) if isinstance(inner, Mapping) else (config,)
    return any(
        part.get(key) for part in both for key in ("num_local_experts", "num_experts", "n_routed_experts")
    )


def _in_moe(module: str) -> bool:
    return (
        re.search(r"(^|\.)(block_sparse_moe|moe|mlp|feed_forward|ffn)\.\w*(linear|proj|w\d)$", module)
        is not None
    )


def layer_of(name: str) -> int | None:
    """Index of the layer the tensor belongs to, or ``None`` outside the layers."""
    found = _LAYER.search(name)
    return None if found is None else int(found[1])


def tower_and_layer(name: str) -> tuple[str, int] | None:
    """The list of layers (its path) and the index in it: the outermost numbered list that is named so."""
    found = _LAYER.search(name)
    return None if found is None else (name[: found.start(1) - 1], int(found[1]))


def place_of(name: str, role: Role) -> Place:
    """Whether a tensor comes before, in, or after the layers."""
    if _LAYER.search(name) is not None:
        return "inside"
    if role == "head":
        return "after"
    if role in ("embed", "buffer") or _BEFORE.search(name):
        return "before"
    return "after" if _AFTER.search(name) else "before"


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

    def length(self, name: str) -> int:
        """How many layers the tensor's tower has; 0 outside the layers."""
        found = tower_and_layer(name)
        return 0 if found is None else self.lengths.get(found[0], found[1] + 1)

    @property
    def longest(self) -> int:
        """How many layers the longest tower has; 0 where there is none."""
        return max(self.lengths.values(), default=0)

    def depth(self, name: str, role: Role, outer: Literal["position", "zero"] = "position") -> float:
        """Place on a depth curve, 0 to 1: layer/(layers-1) of the tensor's tower; 1 where it has one layer.

        Outside the layers: 0 before them; after them 1, or 0 where ``outer`` is ``zero``.
        """
        found = tower_and_layer(name)
        if found is None:
            return 1.0 if outer == "position" and place_of(name, role) == "after" else 0.0
        length = self.lengths.get(found[0], found[1] + 1)
        return found[1] / (length - 1) if length > 1 else 1.0


def is_turned(name: str, shape: Sequence[int], config: Mapping[str, Any]) -> bool:
    """True for weights stored as (in, out): those of ``Conv1D``, ERNIE VL's routers, and stacks of experts of
    some families, which may be saved the other way round too, as the width of the model tells where sides
    differ.
    """
    if stack_of(name, shape, config):
        return name.endswith("w2")
    if config.get("model_type") in _TURNED_ROUTERS:
        return _ROUTER.search(name) is not None
    found = _TURNED_STACK.search(name)
    if found is None or len(shape) != 3 or config.get("model_type") not in _TURNED_TYPES:
        return is_conv1d(name, config)
    inner = config.get("text_config")
    width = (inner if isinstance(inner, Mapping) else config).get("hidden_size")
    wide, other = shape[1:] if found[1] in _INTO_EXPERTS else shape[:0:-1]
    return wide == width or other != width


def stack_of(name: str, shape: Sequence[int], config: Mapping[str, Any]) -> tuple[int, ...]:
    """Of DBRX's experts, one below the other in a matrix, (experts, rows, columns); else nothing."""
    said = config.get("ffn_config")
    count = said.get("moe_num_experts") if isinstance(said, Mapping) and _PILED.search(name) else None
    fits = isinstance(count, int) and count > 0 and len(shape) == 2 and shape[0] % count == 0
    return (count, shape[0] // count, shape[1]) if count and fits else ()


def is_conv1d(name: str, config: Mapping[str, Any]) -> bool:
    """True for weights stored as (in, out): the ``Conv1D`` modules of GPT-2 and its kin."""
    parts = name.split(".")
    return config.get("model_type") in _CONV1D_TYPES and len(parts) > 1 and parts[-2] in _CONV1D_MODULES
