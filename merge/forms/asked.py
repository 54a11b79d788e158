"""What can be said about the form of the result before any model has been looked at. Loads no torch."""

from collections.abc import Iterator

from merge.checks import error
from merge.errors import Finding
from merge.recipe import Recipe
from merge.recipe_results import MoeResult


def check_result(recipe: Recipe) -> Iterator[Finding]:
    """What does not go together with the asked form."""
    if recipe.result.form == "adapter":
        yield from _check_adapter(recipe)
    elif isinstance(recipe.result, MoeResult):
        yield from _check_moe(recipe, recipe.result)


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
    for position, source in enumerate(recipe.sources):
        if not asked.gate.endswith("random") and not source.prompts:
            message = f"The gate {asked.gate} needs prompts that tell what {source.id} is for."
            yield error("prompts_missing", message, "sources", position, "prompts")
    if recipe.slices or recipe.modules:
        yield error("moe_with_slices", "A mixture cannot be made from slices yet; merge first.", "slices")


def _check_adapter(recipe: Recipe) -> Iterator[Finding]:
    if recipe.base is None:
        message = "An adapter is what changed in a base model, but the recipe names no base."
        yield error("base_missing", message, "base")
    if recipe.slices or recipe.modules:
        message = "An adapter leaves the layers of the base as they are: it cannot be made from slices."
        yield error("adapter_with_slices", message, "slices")
    if recipe.tokenizer.aligns and recipe.tokenizer.source != "base":
        message = "An adapter keeps the vocabulary of the base: leave the tokenizer section out."
        yield error("adapter_with_tokenizer", message, "tokenizer")
