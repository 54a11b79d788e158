"""What PEFT can load as a LoRA, and what it cannot, told by names. Loads no torch."""

import re
from collections.abc import Callable, Container, Iterable

_MAMBAS = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
STACKED = frozenset(
    {
        "afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe",
        "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa",
        "hunyuan_v1_moe", "longcat_flash", "mellum", "minimax", "minimax_m2", "mixtral", "olmoe",
        "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "solar_open",
    }
)  # fmt: skip
"""Mixtures (``model_type``) whose experts PEFT stacks as Transformers 5 does, so that it finds them."""
REMADE = {
    "ernie4_5_vl_moe": ("gate",),
    "gradium_phonon_tts": ("in_proj",),
    "inkling_mm_model": ("w13_dn",),
    "kimi_k25": ("wqkv",),
    "minimax_m3_vl": ("gate_proj", "up_proj"),
    "mistral_large4": ("wq", "wk"),
}
"""Modules of files that Transformers 5 turns, interleaves or puts together when it reads them."""
_TABLES = frozenset({
    "audio_bos_eos_token", "embed_positions", "iou_token", "mask_tokens", "obj_score_token",
    "queries_embedder", "queries_features", "query_feat", "rel_pos_emb",
})  # fmt: skip
"""Embeddings of places, queries and the like."""
_OF_ONE = re.compile(r"(?P<all>.*\.experts)\.\d+\.(?P<part>[^.]+)\.weight")
_DOWN = frozenset({"w2", "down_proj"})


def stacked_with(names: Iterable[str]) -> Callable[[str], bool]:
    """Whether PEFT stacks a matrix with some of these experts': it takes all experts of all layers
    or none, gates and ups together, and these not without downs.
    """
    stacks = {stack for name in names if (stack := _stack_of(name)) is not None}
    stacks |= {(experts, True) for experts, _ in stacks if (experts, False) in stacks}
    return lambda name: _stack_of(name) in stacks


def _stack_of(name: str) -> tuple[str, bool] | None:
    """The experts that a matrix belongs to, whatever the layer, and whether it is one of their downs."""
    found = _OF_ONE.fullmatch(name)
    return None if found is None else (re.sub(r"\.\d+\.", ".", found["all"]), found["part"] in _DOWN)


def refused(name: str, model_type: str, names: Container[str]) -> str | None:
    """Why PEFT cannot make this weight a LoRA that counts, as a sentence's end; ``None`` where it can."""
    module, _, last = name.removesuffix(".weight").rpartition(".")
    if last in ("out_proj", "dt_proj") and model_type in _MAMBAS:
        return f"counts for nothing as a LoRA in a {model_type}, which passes it by; it is left out"
    if last in REMADE.get(model_type, ()):
        return "becomes other rows or columns in Transformers 5, which a LoRA cannot follow; it is left out"
    if last == "out_proj" and f"{module}.in_proj_weight" in names:
        return "belongs to an attention that passes its LoRA by; it is left out"
    if last in _TABLES:
        return "is a table, as which PEFT cannot load it; it is left out"
    return None
