"""How what is found about tensors is told: models of another size first, floods counted."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from merge.checkpoint.index import ModelIndex
from merge.errors import Finding
from merge.recipe.findings import error, warning

MOST_OF_A_KIND = 20
"""Findings of one code and severity about one model that are told in full; the rest are counted."""

_FOLLOWS = frozenset({"shape_mismatch", "missing_tensor", "extra_tensor"})
_WIDTHS = ("hidden_size", "intermediate_size", "n_embd", "d_model", "d_ff", "head_dim")
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers")
_COUNTS = ("num_attention_heads", "num_key_value_heads", "num_experts", "num_local_experts")
_SIZES = (*_WIDTHS, *_DEPTHS, *_COUNTS)


def as_told(
    findings: Sequence[Finding], reference: ModelIndex, models: Mapping[str, ModelIndex]
) -> Iterator[Finding]:
    """The findings about a result whose reference is this model, as people read them."""
    unfit = {each.model for each in findings if each.severity == "error" and each.code in _FOLLOWS}
    for key, model in models.items():
        if key in unfit and (differing := _differing(reference, model)):
            message = (
                f"{model.label} is of another size than {reference.label} ({differing}): tensors are "
                "merged one by one, so all models must have the same. Layers of several models are put into "
                "one by slices."
            )
            yield error("sizes_differ", message, model=key)
    yield from _shortened(findings)


def _differing(reference: ModelIndex, model: ModelIndex) -> str:
    ours, theirs = _sizes(reference.config), _sizes(model.config)
    names = [name for name in theirs if name in ours and theirs[name] != ours[name]]
    return ", ".join(f"{name} {theirs[name]} against {ours[name]}" for name in names)


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config")
    stated = {**config, **inner} if isinstance(inner, Mapping) else config
    return {name: stated[name] for name in _SIZES if stated.get(name) is not None}


def _shortened(findings: Sequence[Finding]) -> Iterator[Finding]:
    counts: Counter[tuple[str, str | None, str]] = Counter()
    for finding in findings:
        kind = finding.code, finding.model, finding.severity
        counts[kind] += 1
        if counts[kind] <= MOST_OF_A_KIND:
            yield finding
    for (code, model, severity), count in counts.items():
        if count > MOST_OF_A_KIND:
            make = error if severity == "error" else warning
            yield make(code, f"... and {count - MOST_OF_A_KIND} more tensors with {code}.", model=model)
