"""What checking and scoring a merge takes, and what of it cannot be had: told before anything is fetched. No
torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from jobs.errors import RequestInvalid
from jobs.planning import Planned
from jobs.sets import EvaluateRequest
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding, PlanRefused
from merge.plan import Plan
from merge.recipe.recipe import Recipe
from merge.recipe.stages import ADAPTER, parted, stage_of

FLOAT_BYTES = 4
LEAST_BYTES = 2
"""Bytes an entry takes at least where a checkpoint is written to be looked at."""
OVER_BASE = ("adapter", "bundle")
"""Forms of results that are looked at over their base."""
NOT_ALONE = "is no Transformers model by itself: it has no config that says which class loads it"


def reads_whole(evaluate: EvaluateRequest, recipe: Recipe) -> bool:
    """Whether the models of a merge are fetched with all of their files, to be scored or to be what the
    result is scored over.
    """
    return evaluate.scores_parents or (bool(evaluate.sets) and recipe.result.form in OVER_BASE)


def is_alone(index: ModelIndex) -> bool:
    """Whether a model may be loaded by itself, as far as its config says."""
    return bool(index.config) and "_class_name" not in index.config


def is_over_base(plan: Plan) -> bool:
    """Whether the result is no checkpoint by itself, but an adapter or a bundle."""
    return plan.adapter is not None or plan.bundle is not None


def whole_bytes(index: ModelIndex) -> int:
    """About what a checkpoint like this model takes, written by a merge."""
    return max(index.bytes if index.decoding is None else 0, LEAST_BYTES * index.parameters)


def result_bytes(plan: Plan) -> int:
    """About what is loaded of the result, or of a member of it, for its check."""
    return whole_bytes(plan.models[plan.reference]) if is_over_base(plan) else plan.estimate.output_bytes


def over_base_bytes(plan: Plan) -> int:
    """What such a result takes that is written to be looked at, with the base that a stage gives it."""
    own = result_bytes(plan) if is_over_base(plan) else 0
    over_stage = plan.adapter is not None and stage_of(plan.recipe.base or "") is not None
    return own + (own + plan.staged.disk_bytes if over_stage else 0)


def parents(planned: Planned) -> dict[str, ModelIndex]:
    """The models that the result is compared with, by role: all that it is made from."""
    roles = [each.role for each in planned.inputs if not each.role.endswith(ADAPTER)]
    return {role: planned.models[role] for role in roles if parted(role)[1] != "donor"}


def left_out(planned: Planned) -> dict[str, str]:
    """Parents that cannot be scored, by role, with the reason as a clause about the model."""
    return {role: NOT_ALONE for role, index in parents(planned).items() if not is_alone(index)}


def is_the_result(planned: Planned, role: str) -> bool:
    """Whether a source is what the merge gives, as where a member of a bundle is given back."""
    recipe = planned.recipe
    steps = [step.method for step in recipe.steps]
    return (recipe.source_ids(), steps, recipe.result.form) == ((role,), ["passthrough"], "checkpoint")


def given_back(planned: Planned) -> dict[str, ModelIndex]:
    """The parents of which a checkpoint is written to be scored: adapters over a model."""
    return {
        role: index
        for role, index in parents(planned).items()
        if index.adapter is not None and is_alone(index) and not is_the_result(planned, role)
    }


def disk_bytes(planned: Planned, evaluate: EvaluateRequest) -> int:
    """What the largest checkpoint takes that is written only to be looked at, one at a time."""
    if not evaluate.sets:
        return 0
    sizes = [whole_bytes(index) for index in given_back(planned).values()] if evaluate.parents else []
    plan = planned.plan
    return max([*sizes, over_base_bytes(plan)])


def told(planned: Planned, evaluate: EvaluateRequest, scratch_free: int | None = None) -> Planned:
    """The plan of a merge with what scoring it takes, and which parents cannot be scored. Raises
    ``RequestInvalid`` where the result cannot be, ``PlanRefused`` where the disk is too small for it.
    """
    if not evaluate.sets:
        return planned
    check_result(planned.plan)
    estimate = planned.summary["estimate"]
    disk = estimate["disk_bytes"] + disk_bytes(planned, evaluate)
    if scratch_free is not None and disk > scratch_free:
        said = (
            f"The merge, and a checkpoint that is written to be scored, need {disk} bytes of disk, but "
            f"{scratch_free} are free."
        )
        raise PlanRefused((Finding("error", "disk_too_small", said, "/evaluate/sets"),))
    peak = max(estimate["peak_memory_bytes"], _memory_bytes(planned, evaluate))
    findings = (*planned.findings, *(_unscored(planned) if evaluate.parents else ()))
    needs = {"disk_bytes": disk, "peak_memory_bytes": peak}
    facts: Mapping[str, Any] = {
        "estimate": {**estimate, **needs},
        "findings": [each.as_dict() for each in findings],
    }
    return replace(planned.saying(facts), findings=findings)


def check_result(plan: Plan) -> None:
    """Raises ``RequestInvalid`` where what a plan makes cannot be loaded, and so not be scored."""
    if plan.code:
        kind = plan.result_config().get("model_type")
        raise RequestInvalid(
            f"the result cannot be scored: Transformers has no class for a {kind} mixture of this make, and "
            "code that comes with a model is never run; ask for another kind of mixture, or leave the sets "
            "out",
            "/evaluate/sets",
        )
    index = plan.models[plan.reference]
    if not is_alone(index):
        raise RequestInvalid(
            f"the result cannot be scored: {index.label}, from which it takes its config, {NOT_ALONE}; leave "
            "the sets out",
            "/evaluate/sets",
        )


def _memory_bytes(planned: Planned, evaluate: EvaluateRequest) -> int:
    """What the largest model takes while it is scored."""
    plan = planned.plan
    own = sum(prod(output.shape) for output in plan.outputs)
    sizes = [plan.models[plan.reference].parameters if is_over_base(plan) else own]
    sizes += [index.parameters for index in parents(planned).values()] if evaluate.parents else []
    return FLOAT_BYTES * max(sizes)


def _unscored(planned: Planned) -> Iterator[Finding]:
    for role, why in left_out(planned).items():
        message = f"{planned.models[role].label} {why}, so the result is not compared with it."
        yield Finding("warning", "parent_not_scored", message, None, role)
