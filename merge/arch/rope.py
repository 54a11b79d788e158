"""What a config says of its rotary embedding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the rotary embedding, under whichever name the config has them."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    plain = {} if config.get("rope_theta") is None else {"rope_theta": config["rope_theta"]}
    return {**plain, **found} if isinstance(found, Mapping) else plain


def rope_kind(config: Mapping[str, Any]) -> str:
    """Which rotary embedding a config asks for; ``default`` is the plain one."""
    found = rope_of(config)
    return str(found.get("rope_type") or found.get("type") or "default")


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
