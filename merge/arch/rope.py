"""What a config says of its rotary embedding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SILENT, _THETA = ("llama", "mistral", "qwen2", "qwen3"), 10000.0
"""Families whose configs may leave the base out (Llama 2), and what it is then."""
_SAME_KIND = {"mrope": "default", "su": "longrope"}


def rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the rotary embedding, under whichever name the config has them."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    plain = {} if config.get("rope_theta") is None else {"rope_theta": config["rope_theta"]}
    return {**plain, **found} if isinstance(found, Mapping) else plain


def rope_kind(config: Mapping[str, Any]) -> str:
    """Which rotary embedding a config asks for; ``default`` is the plain one."""
    found = rope_of(config)
    return str(found.get("rope_type") or found.get("type") or "default")


def rotation_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """By what positions are turned, in whichever fields a config says it; some have one for each type of
    layer.
    """
    rope, kind = rope_of(config), rope_kind(config)
    parts = {f"{name}.": part for name, part in rope.items() if isinstance(part, Mapping)}
    found = {
        f"{place}{name}": part[name]
        for place, part in {"": rope, **parts}.items()
        for name in ("rope_theta", "factor")
        if part.get(name) is not None
    }
    silent = {"rope_theta": _THETA} if config.get("model_type") in _SILENT else {}
    return {**silent, **found, "rope_type": _SAME_KIND.get(kind, kind)}


@dataclass(frozen=True)
class Spin:
    """A rotation of vectors of ``heads`` heads, the halves of each turned in pairs; ``theta`` is the base of
    its speeds.
    """

    heads: int
    theta: float


def spin_of(config: Mapping[str, Any], width: int) -> Spin | None:
    """The rotation by which a model of this config tells positions, applied to ``width`` entries; ``None``
    where they are no whole heads of pairs.
    """
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else config
    heads, theta = inner.get("num_attention_heads"), rope_of(inner).get("rope_theta", 10000.0)
    if type(heads) is not int or heads < 1 or width % heads or width // heads % 2:
        return None
    is_base = isinstance(theta, int | float) and theta > 0
    return Spin(heads, float(theta)) if is_base else None
