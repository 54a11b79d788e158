"""What a config says of layers: how many there are, and what each of them is; rewritten for other layers.

Configs count layers under a handful of names, and describe single layers in lists with one entry a layer
(``layer_types``), in lists of layer numbers (``mlp_only_layers``) or by a rule (``sliding_window_pattern``).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
Origins = Sequence[tuple[Config, int]]
"""For each layer of the result the config of its model and the layer there."""

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
_ENCODER = ("encoder_layers", "num_encoder_layers", *_COUNTS)
_DECODER = ("decoder_layers", "num_decoder_layers")
_ANY_COUNT = frozenset((*_ENCODER, *_DECODER))
_TOWERS = (
    ("vision", re.compile(r"vision|visual|image|vit"), re.compile(r"vision|visual|image|vit")),
    ("audio", re.compile(r"audio|speech|sound"), re.compile(r"audio|speech|sound")),
)
_TEXT = re.compile(r"text|language|llm|decoder")
_BY_LAYER = re.compile(
    r"layer|block|attn|attention|window|rope|heads|intermediate|ffn|mlp|moe|spars|pattern|expert"
)
_NOT_BY_LAYER = frozenset({"mrope_section", "layers_to_transform"})
_NUMBERS = re.compile(r"(_indexes|(?<!^out)_indices|_idxs|_only_layers|^cross_attention_layers|^moe_layers)$")
_EVERY = (
    "full_attention_interval", "moe_layer_freq", "decoder_sparse_step", "interleave_moe_layer_step",
    "no_rope_layer_interval", "attn_layer_period", "expert_layer_period",
)  # fmt: skip
_RULES = (*_EVERY, "first_k_dense_replace", "num_kv_shared_layers")
_PATTERNS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
"""Every n-th layer sees everything, where the config does not say otherwise."""
_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Recut:
    """A config for other layers; ``remarks`` are sentences. ``unstated``: it counts these layers nowhere."""

    config: dict[str, Any]
    remarks: tuple[str, ...] = ()
    unstated: bool = False


def recut(config: Config, tower: str, origins: Origins) -> Recut:
    """The config of a model whose list of layers ``tower`` is made of the layers ``origins``."""
    path = _part_of(config, tower)
    keys = () if path is None else _count_keys(config, _at(config, path), tower)
    if path is None or not keys:
        return Recut(dict(config), (), bool(config))
    part = _by_rule(_at(config, path))
    counted = next((part[key] for key in (*keys, *_COUNTS) if isinstance(part.get(key), int)), 0)
    sources = [(_by_rule(_at(own, path)), layer) for own, layer in origins]
    made = _relisted(part, counted, sources) | dict.fromkeys(keys, len(origins))
    if _is_pair(config) and all(part.get(key) is None for key in _DECODER) and keys[0] in _ENCODER:
        made["num_decoder_layers"] = counted
    top = {key: len(origins) for key in keys if path and config.get(key) == counted}
    in_place = [layer for _, layer in origins] == list(range(len(origins)))
    return Recut(_with(config, path, made) | top, () if in_place else tuple(_rules(part)))


def _relisted(part: Config, counted: int, sources: Origins) -> dict[str, Any]:
    """Lists with one entry a layer, and lists of layer numbers, for the new layers."""
    made = dict(part)
    for key, value in part.items():
        if _NUMBERS.search(key) and isinstance(value, list):
            made[key] = [at for at, (own, layer) in enumerate(sources) if layer in (own.get(key) or ())]
        elif isinstance(value, list | str) and len(value) == counted and _is_by_layer(key):
            picked = [_entry(own.get(key), value, layer) for own, layer in sources]
            made[key] = "".join(picked) if isinstance(value, str) else picked
    return made


def _is_by_layer(key: str) -> bool:
    return key not in _NOT_BY_LAYER and _BY_LAYER.search(key) is not None


def _entry(theirs: Any, ours: Sequence[Any], layer: int) -> Any:
    """What a model's own list says of its layer, else what the result's model says of that layer."""
    listed = theirs if isinstance(theirs, type(ours)) and layer < len(theirs) else ours
    return listed[min(layer, len(listed) - 1)]


def _rules(part: Config) -> Iterator[str]:
    for key in _RULES:
        if part.get(key) and (part[key] != 1 or key not in _EVERY):
            yield (
                f"{key} ({part[key]}) of the config counts layers from the first, and layers were moved: "
                "check that it still says what each layer is."
            )


def _by_rule(part: Config) -> Config:
    """The part with ``layer_types`` written out where a rule of its architecture implies them."""
    count = next((part[key] for key in _COUNTS if isinstance(part.get(key), int)), 0)
    kind = str(part.get("model_type", ""))
    pattern = part.get("sliding_window_pattern", part.get("_sliding_window_pattern", _PATTERNS.get(kind)))
    if part.get("layer_types") is not None or not isinstance(pattern, int) or not part.get("sliding_window"):
        return part
    types = [_SLIDING if (layer + 1) % pattern else _FULL for layer in range(count)]
    return {**part, "layer_types": types}


def _at(config: Config, path: tuple[str, ...]) -> Config:
    for key in path:
        inner = config.get(key)
        config = inner if isinstance(inner, Mapping) else {}
    return config


def _with(config: Config, path: tuple[str, ...], part: Config) -> dict[str, Any]:
    if not path:
        return dict(part)
    return {**config, path[0]: _with(_at(config, path[:1]), path[1:], part)}


def _part_of(config: Config, tower: str) -> tuple[str, ...] | None:
    """Where in a config its model's part with this tower is described: a path of keys, ``()`` for the top."""
    parts = [path for path, inner in _parts(config, ()) if inner.keys() & _ANY_COUNT]
    for _, in_tower, in_path in _TOWERS:
        if in_tower.search(tower):
            named = [path for path in parts if in_path.search(".".join(path))]
            return named[0] if named else (() if () in parts and len(parts) == 1 else None)
    others = [p for p in parts if not any(kind.search(".".join(p)) for _, _, kind in _TOWERS)]
    named = [path for path in others if path and _TEXT.search(path[-1])]
    return named[0] if named else (others[0] if others else None)


def _parts(config: Config, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Config]]:
    yield path, config
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("config") and len(path) < 2:
            yield from _parts(value, (*path, key))


def _is_pair(config: Config) -> bool:
    """Whether it is an encoder with a decoder (as deep as the encoder where nothing is said)."""
    return bool(config.get("is_encoder_decoder")) or config.get("model_type") in ("t5", "mt5", "umt5")


def _count_keys(config: Config, part: Config, tower: str) -> tuple[str, ...]:
    """The keys that count this tower's layers; one that is only implied is among them."""
    segments = tower.split(".")
    if not _is_pair(config):
        return tuple(key for key in _COUNTS if key in part)
    if "decoder" in segments:
        return tuple(key for key in _DECODER if key in part) or ("num_decoder_layers",)
    return tuple(key for key in _ENCODER if key in part)
