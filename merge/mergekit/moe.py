"""mergekit-moe configurations, translated: experts, routers and their prompts, with its conventions spelled
out.
"""

from collections.abc import Mapping
from typing import Any

from merge.mergekit.values import parse_reference, refuse, unknown

_KEYS = ("architecture", "base_model", "dtype", "experts", "experts_per_token", "gate_mode", "shared_experts")
_EXPERT_KEYS = ("negative_prompts", "noise_scale", "positive_prompts", "residual_scale", "source_model")
_GATES = ("cheap_embed", "hidden", "hidden_avg", "hidden_last", "random", "uniform_random")
_DTYPES = ("bfloat16", "float16", "float32")
_FAMILIES = {"mixtral": "mixtral", "deepseek": "deepseek", "qwen3": "qwen3_moe", "qwen": "qwen2_moe"}


def is_moe(document: Mapping[str, Any]) -> bool:
    """Whether a document is one of mergekit-moe's."""
    return "experts" in document and "steps" not in document


def translate_moe(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The recipe (as plain data) that a configuration means, and notes on what was made explicit.

    Raises ``MergekitUnsupported`` with a pointer into ``document`` for whatever has no counterpart.
    """
    for key in document:
        if key not in _KEYS:
            refuse(key, unknown(key, _KEYS, "key"))
    notes = ["everything but the experts and the routers is the base model's"]
    base = _model(document.get("base_model"), "base_model")
    experts = _experts(document, "experts", "expert")
    shared = _experts(document, "shared_experts", "shared")
    if not experts:
        refuse("experts", "There must be at least one expert.")
    gate = _one_of(document, "gate_mode", "hidden", _GATES)
    if gate.startswith("hidden"):
        notes.append("every prompt is run by itself: no padding takes part in its mean")
    if gate == "hidden":
        notes.append("hidden looks at the last token of a prompt in mergekit: it is hidden_last here")
        gate = "hidden_last"
    if any(source.get("noise_scale") for source in (*experts, *shared)):
        notes.append("noise differs from mergekit's: it is keyed by seed, source and tensor")
    result: dict[str, Any] = {
        "form": "moe",
        "architecture": _architecture(document.get("architecture")),
        "gate": gate,
        "experts_per_token": document.get("experts_per_token", 2),
        "shared": [source["id"] for source in shared],
    }
    recipe: dict[str, Any] = {
        "base": base,
        "sources": [*experts, *shared],
        "steps": ["linear"],
        "overrides": [{"match": "*", "policy": "base"}],
        "result": result,
    }
    if document.get("dtype") is not None:
        recipe["dtype"] = {"output": _one_of(document, "dtype", "", _DTYPES)}
    return recipe, notes


def _experts(document: Mapping[str, Any], key: str, word: str) -> list[dict[str, Any]]:
    found = document.get(key) or []
    if not isinstance(found, list):
        refuse(key, "It must be a list of experts.")
    return [_expert(each, (key, number), f"{word}{number}") for number, each in enumerate(found)]


def _expert(found: Any, at: tuple[str | int, ...], name: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        refuse(*at, "It must be a map with source_model.")
    for key in found:
        if key not in _EXPERT_KEYS:
            refuse(*at, str(key), unknown(str(key), _EXPERT_KEYS, "key"))
    model, adapter = parse_reference(found.get("source_model"), *at, "source_model")
    source: dict[str, Any] = {"id": name, "model": model}
    if adapter is not None:
        source["adapter"] = adapter
    for key, ours in (("positive_prompts", "prompts"), ("negative_prompts", "negative_prompts")):
        if found.get(key):
            source[ours] = found[key]
    for key in ("noise_scale", "residual_scale"):
        if found.get(key) is not None:
            source[key] = found[key]
    return source


def _model(value: Any, key: str) -> str:
    model, adapter = parse_reference(value, key)
    if adapter is not None:
        refuse(key, "The base of a mixture cannot have an adapter: merge it into the base first.")
    return model


def _architecture(value: Any) -> str:
    if value is None:
        return "auto"
    plain = "".join(char for char in str(value).lower() if char.isalnum())
    found = next((ours for theirs, ours in _FAMILIES.items() if plain.startswith(theirs)), None)
    if found is None:
        made = "Mixtral, DeepSeek-MoE, Qwen2-MoE and Qwen3-MoE"
        refuse("architecture", f"{str(value)[:40]!r} is not made; made are {made}.")
    return found


def _one_of(document: Mapping[str, Any], key: str, default: str, known: tuple[str, ...]) -> str:
    value = document.get(key, default)
    if value not in known:
        refuse(key, unknown(str(value), known, "value"))
    return str(value)
