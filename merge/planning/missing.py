"""Tensors that only some models have: filled in, merged from those that have them, or dropped."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from merge.catalog import catalogue
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding
from merge.planning.output_tensor import Input, OutputTensor
from merge.recipe.findings import warning
from merge.recipe.recipe import Recipe

HINT = "missing: fill, present or drop would go on without it"


def settle(
    outputs: Sequence[OutputTensor],
    recipe: Recipe,
    models: Mapping[str, ModelIndex],
    leads: Mapping[str, Input],
) -> tuple[list[OutputTensor], list[Finding]]:
    """The outputs as ``recipe.missing`` wants them where a model lacks a tensor, with a warning for each;
    ``leads`` are the tensors whose shapes they have, by name, unless only a source has one.

    ``fill``: who lacks it is given the base's tensor (without a base that has it, that of the first model
    that has). ``present``: the steps merge the models that have it; where the base lacks it, or fewer are
    left than the method takes, their mean. ``drop``: the result does not have it.
    """
    settled: list[OutputTensor] = []
    findings: list[Finding] = []
    for output in outputs:
        lacking = [each for each in output.inputs if not _has(models, each)]
        if not lacking or recipe.missing == "error" or output.policy not in ("method", "mean", "equal"):
            settled.append(output)
            continue
        findings += (_told(recipe.missing, output, each, models) for each in lacking)
        if recipe.missing == "fill":
            settled.append(_filled(output, models, leads.get(output.name)))
        elif recipe.missing == "present":
            settled.append(_present(output, recipe, models, leads.get(output.name)))
    return settled, findings


def _has(models: Mapping[str, ModelIndex], source: Input) -> bool:
    return source.tensor in models[source.model].tensors


def _told(rule: str, output: OutputTensor, lacking: Input, models: Mapping[str, ModelIndex]) -> Finding:
    done = {
        "fill": "it is given that of the base, or of the first model that has it",
        "present": "the models that have it are merged",
        "drop": "the result does not have it either",
    }[rule]
    message = f"{models[lacking.model].label} lacks the tensor {lacking.tensor}: {done}."
    return warning(f"missing_{rule}", message, "missing", model=lacking.model, tensor=output.name)


def _filled(output: OutputTensor, models: Mapping[str, ModelIndex], lead: Input | None) -> OutputTensor:
    own = next((each for each in output.inputs if each.model == "base"), None)
    base = output.base or own or Input("base", output.inputs[0].tensor)  # layers may be others than there
    able = (base, *output.inputs, *((lead,) if lead is not None else ()))
    known = [each for each in able if each.model in models and _has(models, each)]
    return replace(output, inputs=tuple(e if _has(models, e) else known[0] for e in output.inputs))


def _present(
    output: OutputTensor, recipe: Recipe, models: Mapping[str, ModelIndex], lead: Input | None
) -> OutputTensor:
    sources = output.sources
    kept = [place for place, source in enumerate(sources) if _has(models, source)]
    left = tuple(sources[place] for place in kept)
    only = left or ((lead,) if lead is not None else ())
    if output.policy != "method":
        return replace(output, inputs=only)
    weights = tuple(output.weights[place] for place in kept)
    settings = tuple(_of_sources(each, kept, len(sources)) for each in output.settings)
    if output.base is not None and not _has(models, output.base):
        return replace(output, policy="mean", inputs=left, weights=weights, settings=settings)
    least = max(catalogue()[step.method].needs["sources"][0] for step in recipe.steps)
    if len(kept) < least:
        return replace(output, policy="mean", inputs=only, weights=weights, settings=settings)
    base = (output.base,) if output.base is not None else ()
    ids = tuple(output.ids[place] for place in kept)
    return replace(output, inputs=(*base, *left), weights=weights, settings=settings, ids=ids)


def _of_sources(settings: Mapping[str, Any], kept: Sequence[int], count: int) -> Mapping[str, Any]:
    """Settings that have a value for each source, cut to the sources that are left."""
    return {
        name: tuple(value[place] for place in kept)
        if isinstance(value, tuple) and len(value) == count
        else value
        for name, value in settings.items()
    }
