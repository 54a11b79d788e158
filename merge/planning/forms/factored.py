"""What recipes need whose combining method works on the factors of LoRA adapters. Loads no torch."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from merge.catalog import MethodEntry, catalogue
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding
from merge.kernels.truncation import DOUBLE
from merge.planning.outputs import OutputTensor
from merge.recipe.findings import error
from merge.recipe.recipe import Recipe

COPIES = 6
"""Times that the factors of one tensor are in memory while they are merged, each side also as float64."""
KEPT = 4
"""Merged factors of so many tensors are kept between their blocks."""


def takes_factors(entry: MethodEntry) -> bool:
    """Whether a method is handed factors."""
    return bool(entry.needs.get("factors"))


def factor_step(recipe: Recipe) -> int | None:
    """The position of the step that takes factors."""
    return next((at for at, s in enumerate(recipe.steps) if takes_factors(catalogue()[s.method])), None)


def check_factors(recipe: Recipe) -> Iterator[Finding]:
    """What keeps a method on factors from being handed any, whatever the models are."""
    at = factor_step(recipe)
    if at is None:
        return
    method = recipe.steps[at].method
    if at > 0:
        message = (
            f"{method} merges the factors of adapters, and {recipe.steps[0].method} changes entries of their "
            "products: put it before a method on weights, such as task_arithmetic."
        )
        yield error("factors_prepared", message, "steps", 0, "method")
    for place, source in enumerate(recipe.sources if recipe.base is not None else ()):
        if source.adapter is None or source.model != recipe.base:
            other = "another model" if source.adapter is None else "an adapter over another model"
            message = (
                f"{method} merges LoRA adapters over the base, but {source.id} is {other}; a run with "
                "result: {form: adapter} makes an adapter of a model."
            )
            yield error("factors_missing", message, "sources", place)
    if recipe.slices or recipe.modules:
        message = f"{method} merges adapters, which leave the layers of the base as they are: no slices."
        yield error("factors_missing", message, "slices" if recipe.slices else "modules")


def check_saved(
    recipe: Recipe, models: Mapping[str, ModelIndex], outputs: Sequence[OutputTensor]
) -> Iterator[Finding]:
    """Tensors that an adapter replaces whole have no factors to merge."""
    at = factor_step(recipe)
    if at is None:
        return
    for output in outputs:
        for source in output.sources if output.policy == "method" else ():
            adapter = models[source.model].adapter
            if adapter is None:
                continue
            if source.tensor in adapter.changed and source.tensor not in adapter.pairs:
                message = (
                    f"{adapter.label} holds {output.name} whole (modules_to_save, bias, a mask), so that "
                    f"{recipe.steps[at].method} finds no factors: an override with policy mean, base or "
                    f"source:{source.model} says what becomes of it."
                )
                yield error("factors_missing", message, "overrides", model=source.model, tensor=output.name)
            if source.rows is not None and source.tensor in adapter.pairs:
                message = f"{output.name} has factors, whose rows cannot be rearranged by tokens."
                yield error("factors_missing", message, "tokenizer", model=source.model, tensor=output.name)


def factor_bytes(recipe: Recipe, models: Mapping[str, ModelIndex], outputs: Sequence[OutputTensor]) -> int:
    """Bytes that a thread holds for factors; 0 where no step takes any."""
    if factor_step(recipe) is None:
        return 0
    most = 0
    for output in outputs:
        pairs = [
            adapter.pairs.get(source.tensor)
            for source in (output.sources if output.policy == "method" else ())
            if (adapter := models[source.model].adapter) is not None
        ]
        ranks = sum(pair.rank for pair in pairs if pair is not None)
        rows = output.shape[0] if output.shape else 1
        sides = ranks * (rows + prod(output.shape[1:]))
        most = max(most, DOUBLE * ((COPIES + KEPT) * sides + 8 * ranks * ranks))
    return most
