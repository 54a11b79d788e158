"""What ``adapter_config.json`` says of a LoRA: checked, and its patterns read."""

import re
import sys
from collections.abc import Mapping
from typing import Any

from merge import errors

_COPY = re.compile(
    r"(-unsloth)?-(bnb-[48]bit|[48]bit|int[48]|w[48]a16|gptq|awq|hqq|nf4|fp8|bf16|fp16|gguf)\b.*", re.I
)
"""What the names of quantised copies of a model have behind its own: most adapters are trained over one."""
_INSIDE = re.compile(r"^([\w.-]+/[\w.-]+)[@:].*|/[^/]+\.(?:safetensors|gguf)$")
"""What stands behind a repository's name, or the one file of a folder."""
_EXACT_INITS = frozenset({"gaussian", "eva", "mica", "orthogonal"})
_REFUSED_FIELDS = {
    "use_dora": "DoRA also learns magnitudes",
    "lora_bias": "the adapter has biases of its own",
    "layer_replication": "it repeats layers",
    "trainable_token_indices": "it trains single token rows",
    "alora_invocation_tokens": "it only acts after an invocation (aLoRA)",
    "use_qalora": "QALoRA pools its inputs",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters (Arrow)",
    "loftq_config": "LoftQ changes the base's weights",
    "kasa_config": "KaSA weighs the directions between its factors and cuts the base",
    "monteclora_config": "MonteCLoRA draws its factors at random",
    "velora_config": "VeLoRA keeps tensors of its own",
}


def check_config(label: str, config: Mapping[str, Any]) -> None:
    """Raises ``AdapterRefused``, naming the field, where it is not a LoRA that applies exactly."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise errors.AdapterRefused(f"{label}: peft_type {str(kind)[:40]!r} is not supported; only LORA is.")
    for field, why in _REFUSED_FIELDS.items():
        if config.get(field):
            raise errors.AdapterRefused(
                f"{label}: {field} is set, and {why}: it cannot be applied exactly as B A."
            )
    bare = config.get("target_parameters") or []
    for each in bare if isinstance(bare, list) else [bare]:
        if not (str(each).endswith(".weight") and isinstance(bare, list)):
            raise errors.AdapterRefused(
                f"{label}: target_parameters has {str(each)[:80]}, which is no module's weight: factors of "
                "parameters such as experts in one tensor are not read. Merge it into its model with PEFT."
            )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _EXACT_INITS:
        raise errors.AdapterRefused(
            f"{label}: init_lora_weights is {init[:40]!r}, which changes the base's weights; "
            "convert the adapter to a plain LoRA (path_initial_model_for_weight_conversion) first."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise errors.AdapterRefused(f"{label}: r must be a positive whole number, not {str(rank)[:40]}.")
    _number(label, "lora_alpha", alpha)
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(field) or {}
        if not isinstance(pattern, dict):
            raise errors.AdapterRefused(f"{label}: {field} must map module names to numbers.")
        for key, value in pattern.items():
            _number(label, field, value)
            _check_pattern(label, field, key)


def _number(label: str, field: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and abs(value) <= sys.float_info.max):  # nor NaN, nor digits beyond any float
        raise errors.AdapterRefused(f"{label}: {field} holds {str(value)[:40]}, which is not a number.")
    return float(value)


def _check_pattern(label: str, field: str, pattern: str) -> None:
    """Only patterns that match in reasonable time: they are regular expressions from a stranger."""
    quantifiers = len(re.findall(r"(?<!\\)[*+{?]", pattern))
    if len(pattern) > 256 or quantifiers > 2 or re.search(r"\)[*+{?]|\(\?", pattern):
        raise errors.AdapterRefused(
            f"{label}: the {field} key {pattern[:80]!r} is too complicated a pattern."
        )
    try:
        re.compile(pattern)
    except re.error:
        raise errors.AdapterRefused(
            f"{label}: the {field} key {pattern[:80]!r} is not a valid pattern."
        ) from None


def patterned(patterns: Any, module: str, default: float) -> float:
    """What a pattern of these (``rank_pattern``, say) gives a module, or the default."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return default


def other_base(config: Mapping[str, Any], model: str) -> str | None:
    """The model that an adapter's config says it was trained over, where that is another one by its name than
    ``model``. Whose repository or folder it lies in does not count, nor that a copy is quantised.
    """
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named.strip():
        return None
    return named if _plain_name(named) != _plain_name(model) else None


def _plain_name(name: str) -> str:
    """``llama-3-8b`` of ``unsloth/Llama-3-8B-bnb-4bit``, ``meta-llama/Meta-Llama-3-8B@main`` and the place of
    either in a cache of the Hub.
    """
    path = _INSIDE.sub(r"\1", name.strip().replace("\\", "/")).rstrip("/")
    cached = re.search(r"models--(?:[^/]+--)?([^/]+)/snapshots/", f"{path}/")
    last = cached[1] if cached else path.rpartition("/")[2]
    return _COPY.sub("", last.lower()).removeprefix("meta-")
