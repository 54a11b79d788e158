"""What can be said about the form of the result before any model has been looked at. Loads no torch."""

from collections.abc import Iterator

from merge.errors import Finding
from merge.recipe.findings import error, warning
from merge.recipe.recipe import Recipe
from merge.recipe.results import BundleResult, MoeResult
from merge.recipe.stages import named_models, stage_of


def check_result(recipe: Recipe) -> Iterator[Finding]:
    """What does not go together with the asked form."""
    if recipe.result.form == "adapter":
        yield from _check_adapter(recipe)
    elif isinstance(recipe.result, MoeResult):
        yield from _check_moe(recipe, recipe.result)
    elif isinstance(recipe.result, BundleResult):
        yield from _check_bundle(recipe, recipe.result)
    if not isinstance(recipe.result, MoeResult):
        yield from _check_expert_fields(recipe)


def _check_moe(recipe: Recipe, asked: MoeResult) -> Iterator[Finding]:
    ids = recipe.source_ids()
    experts = [source for source in recipe.sources if source.id not in asked.shared]
    for position, name in enumerate(asked.shared):
        if name not in ids:
            yield error("unknown_source", f"There is no source {name!r}.", "result", "shared", position)
    if asked.experts_per_token > len(experts):
        message = (
            f"{asked.experts_per_token} experts for each token are more than the {len(experts)} there are."
        )
        yield error("moe_too_few_experts", message, "result", "experts_per_token")
    if recipe.slices or recipe.modules:
        yield error("moe_with_slices", "A mixture cannot be made from slices yet; merge first.", "slices")


def _check_expert_fields(recipe: Recipe) -> Iterator[Finding]:
    for position, source in enumerate(recipe.sources):
        for name, usual in (("noise_scale", 0), ("residual_scale", 1)):
            if getattr(source, name) != usual:
                message = f"{name} changes an expert of a mixture, but the result is none (result.form)."
                yield error("expert_field_unused", message, "sources", position, name)


def _check_adapter(recipe: Recipe) -> Iterator[Finding]:
    if recipe.base is None:
        message = "An adapter is what changed in a base model, but the recipe names no base."
        yield error("base_missing", message, "base")
    elif (stage := stage_of(recipe.base)) is not None:
        message = (
            f"The adapter is one over what the stage {stage} gives, which is not kept: merge that by itself "
            "too, or it can be put on nothing."
        )
        yield warning("adapter_over_stage", message, "base")
    if recipe.slices or recipe.modules:
        message = "An adapter leaves the layers of the base as they are: it cannot be made from slices."
        yield error("adapter_with_slices", message, "slices")
    if recipe.tokenizer.aligns and recipe.tokenizer.source != "base":
        message = "An adapter keeps the vocabulary of the base: leave the tokenizer section out."
        yield error("adapter_with_tokenizer", message, "tokenizer")


def _check_bundle(recipe: Recipe, asked: BundleResult) -> Iterator[Finding]:
    if recipe.base is None and asked.kind != "twin":
        message = f"A {asked.kind} bundle keeps what changed in a base model, but the recipe names no base."
        yield error("base_missing", message, "base")
    if recipe.slices or recipe.modules:
        message = "The members of a bundle keep their layers: it cannot be made from slices or modules."
        yield error("bundle_with_slices", message, "slices" if recipe.slices else "modules")
    if recipe.tokenizer.aligns:
        message = "The members of a bundle share one vocabulary: leave the tokenizer section out."
        yield error("bundle_with_tokenizer", message, "tokenizer")
    if recipe.reference not in (None, "base"):
        message = "A bundle's config and tokenizer are those of its base: leave reference out."
        yield error("bundle_with_reference", message, "reference")
    for each in named_models(recipe):
        if each.stage is not None:
            message = "A bundle names its base and members by their files, which a stage has none of."
            yield error("bundle_with_stage", message, *each.at)
    if asked.kind == "rmm":
        for position, source in enumerate(recipe.sources):
            if source.adapter is None or source.model != recipe.base:
                message = (
                    f"An rmm bundle keeps LoRA adapters over the base, but {source.id} is none; a run with "
                    "result: {form: adapter} makes an adapter of a model."
                )
                yield error("factors_missing", message, "sources", position)
