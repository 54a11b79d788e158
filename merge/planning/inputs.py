"""The models of a recipe made alike where they differ in form alone: configs lent, tensors named as one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from merge.arch.aliases import other_names
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding
from merge.recipe.findings import warning

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def lend_configs(models: Mapping[str, ModelIndex]) -> dict[str, ModelIndex]:
    """Where a config was derived, that of another of the models with the same sizes, if one has its own."""
    own = [model.config for model in models.values() if model.config and model.derived is None]
    lent = dict(models)
    for key, model in models.items():
        same = [config for config in own if all(config.get(n) == model.config.get(n) for n in _SIZES)]
        if model.derived is not None and same:
            lent[key] = replace(model, config=same[0], derived=None)
    return lent


def in_one_language(
    models: Mapping[str, ModelIndex], used: Sequence[str]
) -> tuple[dict[str, ModelIndex], tuple[Finding, ...]]:
    """Every model with the first one's names for its tensors, where files differ in nothing but those."""
    reference, renamed, findings = models[used[0]], dict(models), []
    for key in used[1:]:
        renamed[key], names = _named_as(models[key], reference)
        if names:
            new, old = next(iter(names.items()))
            message = (
                f"{models[key].label} calls {len(names)} tensors by other names than {reference.label}: "
                f"{old} is taken for {new}, and so on."
            )
            findings.append(warning("tensors_renamed", message, model=key))
    return renamed, tuple(findings)


def _named_as(model: ModelIndex, reference: ModelIndex) -> tuple[ModelIndex, dict[str, str]]:
    """The model with its tensors under the reference's names for them, and what was renamed (new: old)."""
    shapes = [{name: info.shape for name, info in each.tensors.items()} for each in (reference, model)]
    renamed = other_names(shapes[0], shapes[1])
    if not renamed:
        return model, {}
    new = {old: name for name, old in renamed.items()}
    named = [replace(info, name=new.get(name, name)) for name, info in model.tensors.items()]
    tensors = {info.name: info for info in named}
    adapter = model.adapter
    if adapter is not None:
        pairs = {new.get(name, name): pair for name, pair in adapter.pairs.items()}
        replaced = {new.get(name, name): info for name, info in adapter.replaced.items()}
        masked = {new.get(name, name): each for name, each in adapter.masked.items()}
        adapter = replace(adapter, pairs=pairs, replaced=replaced, masked=masked)
    return replace(model, tensors=tensors, adapter=adapter), renamed
