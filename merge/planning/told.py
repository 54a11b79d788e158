"""How what is found about tensors is told: models of another size first, floods counted."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from merge.arch.roles import tower_and_layer
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding
from merge.recipe.findings import error, warning

MOST_OF_A_KIND = 20
"""Findings of one code and severity about one model that are told in full; the rest are counted."""

_FOLLOWS = frozenset({"shape_mismatch", "missing_tensor", "extra_tensor"})
_FILLED = frozenset({"missing_fill", "missing_present", "missing_drop"})
_NUMBERED = re.compile(r"\.experts\.\d+\.")
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
    yield from _other_experts(findings, reference, models)
    yield from _shortened(findings)


def _other_experts(
    findings: Sequence[Finding], reference: ModelIndex, models: Mapping[str, ModelIndex]
) -> Iterator[Finding]:
    """Models whose experts lie in one tensor beside some that have a tensor for each: by name none of them
    meet, and a result without those of a model is none that anybody asks for.
    """
    apart = {
        each.model
        for each in findings
        if each.code in _FILLED or (each.severity == "error" and each.code in _FOLLOWS)
    }
    together = ("in a tensor for each", "in one tensor")
    for key, model in models.items() if apart else ():
        ours, theirs = _stacked(reference), _stacked(model)
        layer = next((at for at in ours if at in theirs and ours[at] != theirs[at]), None)
        if key in apart and layer is not None:
            message = (
                f"{model.label} has the experts of a layer {together[theirs[layer]]}, {reference.label} "
                f"{together[ours[layer]]}: tensors are merged by name, so all models must have them alike. "
                "Transformers 5 writes them in one: save_pretrained(folder, save_original_format=False)."
            )
            yield error("experts_differ", message, model=key)


def _stacked(model: ModelIndex) -> dict[tuple[str, int] | None, bool]:
    """For each layer with experts whether they lie in one tensor."""
    experts = (name for name in model.tensors if ".experts." in name)
    return {tower_and_layer(name): _NUMBERED.search(name) is None for name in experts}


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
