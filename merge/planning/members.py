"""What a twin bundle keeps of each source: an adapter over the merge, planned like any other adapter."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from merge.checkpoint.bundle import SHARED
from merge.errors import Finding
from merge.planning.forms.bundle import twin_adapter
from merge.planning.stages import Make, index_of
from merge.recipe.parts import Source, Step
from merge.recipe.recipe import Recipe
from merge.recipe.results import BundleResult

if TYPE_CHECKING:
    from merge.plan import Plan


def with_members(plan: "Plan", make: Make) -> "tuple[Plan | None, tuple[Finding, ...]]":
    """The plan with those of its members, made by ``make``; ``None`` where one of them cannot work."""
    if plan.bundle is None or plan.bundle.kind != "twin":
        return plan, plan.findings
    shared = replace(index_of(SHARED, plan), label=SHARED)
    members: dict[str, Plan] = {}
    findings = plan.findings
    for source in plan.recipe.sources:
        models = {"base": shared, source.id: plan.models[source.id]}
        member, told = make(member_recipe(plan.recipe, source), models)
        findings += tuple(_of_member(source.id, told))
        if member is None:
            return None, findings
        members[source.id] = member
    findings = tuple(dict.fromkeys(findings))
    estimates = [member.estimate for member in members.values()]
    written = sum(each.output_bytes for each in estimates)
    estimate = replace(
        plan.estimate,
        output_bytes=plan.estimate.output_bytes + written,
        disk_bytes=plan.estimate.disk_bytes + 2 * written,
        peak_memory_bytes=max(
            plan.estimate.peak_memory_bytes, *(each.peak_memory_bytes for each in estimates)
        ),
        seconds=round(plan.estimate.seconds + sum(each.seconds for each in estimates), 1),
    )
    return replace(plan, members=members, estimate=estimate, findings=findings), findings


def member_recipe(recipe: Recipe, source: Source) -> Recipe:
    """One source minus the merge, as an adapter."""
    assert isinstance(recipe.result, BundleResult)
    return Recipe(
        base=SHARED,
        sources=(source.model_copy(update={"weight": 1.0, "settings": {}}),),
        steps=(Step(method="passthrough"),),
        result=twin_adapter(recipe.result),
        dtype=recipe.dtype,
        missing=recipe.missing,
        seed=recipe.seed,
    )


def _of_member(member: str, findings: tuple[Finding, ...]) -> Iterator[Finding]:
    """What is in the way of a member; that the merge is in another dtype than its sources was told before."""
    for each in findings:
        if each.code != "dtype_differs":
            yield replace(each, message=f"Adapter of {member}: {each.message}", pointer=None)
