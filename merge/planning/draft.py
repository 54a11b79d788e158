"""What a plan is made of, found in three steps: what is given, what comes out of it, and what that costs.

Loads no torch. Each step tells its findings; a step that cannot be taken raises them as ``PlanRefused``.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from merge.catalog import MethodEntry, catalogue
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.layout import ShardLayout
from merge.errors import Finding, PlanRefused
from merge.planning.checks import check_models
from merge.planning.estimate import (
    Estimate,
    check_room,
    demand_of,
    estimate_of,
    with_measuring,
    with_vocabulary,
)
from merge.planning.forms.factored import check_saved
from merge.planning.forms.formed import Formed, form
from merge.planning.inputs import in_one_language, lend_configs
from merge.planning.measuring import StatisticsPlan, plan_statistics
from merge.planning.outputs import FLOATS, Outcome, reference_key, resolve_outputs, uses_base
from merge.planning.result_config import cut_config
from merge.planning.stages import Make, Staged, plan_stages
from merge.planning.told import as_told
from merge.recipe.findings import error, warning
from merge.recipe.recipe import Recipe
from merge.tokenizer.planned import VocabularyPlan, plan_vocabulary


@dataclass(frozen=True)
class Given:
    """What a recipe merges: its models (stages taken for models), which are read, and in what vocabulary."""

    models: Mapping[str, ModelIndex]
    reference: str
    used: tuple[str, ...]
    vocabulary: VocabularyPlan | None
    staged: Staged
    findings: tuple[Finding, ...]

    @property
    def read(self) -> tuple[str, ...]:
        """Keys of the models that anything is made from."""
        return tuple(dict.fromkeys((*self.used, *(self.vocabulary.tables if self.vocabulary else ()))))

    @property
    def kept(self) -> dict[str, ModelIndex]:
        """The models of the plan, those of its stages last."""
        own = dict.fromkeys((*self.used, *self.models))
        return {key: self.models[key] for key in own if key in self.models} | self.staged.leaves()


def take_in(
    recipe: Recipe, models: Mapping[str, ModelIndex], findings: tuple[Finding, ...], plan_stage: Make
) -> Given:
    """What a recipe of which ``findings`` are known merges, its stages planned by ``plan_stage``. Raises
    ``PlanRefused`` where it cannot, or where recipe and models do not belong together.
    """
    go_on(findings)
    staged, told = plan_stages(recipe, models, plan_stage)
    findings = tuple(dict.fromkeys((*told, *findings)))
    if staged is None:
        raise PlanRefused(findings)
    go_on(findings)
    reference, models = reference_key(recipe), lend_configs(staged.own())
    used = _used_models(recipe, reference)
    absent = (error("model_missing", f"The model {key} was not given.") for key in used if key not in models)
    findings += tuple(absent)
    go_on(findings)
    models, told = in_one_language(models, used)
    vocabulary, asked = plan_vocabulary(recipe, models, reference)
    merged = [*used, *(key for key in ("base",) if vocabulary and key in vocabulary.tables)]
    alike = check_models(models, list(dict.fromkeys(merged)), aligned=recipe.tokenizer.aligns)
    findings += (*told, *asked, *alike)
    if any(finding.code in ("architecture_mismatch", "quantized") for finding in findings):
        raise PlanRefused(findings)
    return Given(models, reference, used, vocabulary, staged, findings)


@dataclass(frozen=True)
class Drafted:
    """What comes out: every tensor, in the form that is asked for, and the files it goes into."""

    outcome: Outcome
    formed: Formed
    shards: tuple[ShardLayout, ...]
    steps: tuple[MethodEntry, ...]
    findings: tuple[Finding, ...]


def lay_out(recipe: Recipe, given: Given) -> Drafted:
    """The outputs of what is given, and what is wrong with them."""
    models, reference = given.models, given.reference
    formed = form(recipe, models, resolve_outputs(recipe, models, given.vocabulary))
    outcome = formed.outcome
    findings = (
        *as_told(outcome.findings, models[reference], models),
        *check_saved(recipe, models, outcome.tensors),
        *cut_config(models, reference, outcome.layers)[1],
        *_mixed_dtypes(models, given.used),
    )
    steps = tuple(catalogue()[step.method] for step in recipe.steps)
    return Drafted(outcome, formed, formed.shards(recipe, models[reference]), steps, findings)


@dataclass(frozen=True)
class Cost:
    """What a merge takes, and what must be measured before it."""

    estimate: Estimate
    statistics: StatisticsPlan
    findings: tuple[Finding, ...]


def reckon(
    recipe: Recipe,
    given: Given,
    drafted: Drafted,
    measured: Collection[str],
    budget: int,
    scratch_free: int | None,
) -> Cost:
    """What it takes to make what was drafted, and where that is more than there is."""
    models, vocabulary, staged = given.models, given.vocabulary, given.staged
    outcome, formed, steps = drafted.outcome, drafted.formed, drafted.steps
    findings: list[Finding] = []
    demand = demand_of(recipe, models, outcome.tensors, steps, formed.held_bytes, vocabulary)
    estimate = estimate_of(models, outcome, drafted.shards, steps, demand, budget, formed.adapter)
    if vocabulary is not None:
        estimate = with_vocabulary(estimate, vocabulary, recipe, models, outcome)
        findings += vocabulary.check_room(recipe.tokenizer.k, budget)
    statistics, told = plan_statistics(recipe, models, outcome.tensors, steps, measured, budget)
    estimate = staged.estimate(with_measuring(estimate, statistics), recipe, outcome.tensors)
    findings += told
    findings += staged.check_room(budget)
    findings += check_room(
        demand, steps, estimate, budget, scratch_free, formed.adapter, statistics, staged.held_bytes(recipe)
    )
    if formed.moe is not None:
        findings += formed.moe.check_room(models, budget)
        most = max(estimate.peak_memory_bytes, formed.moe.peak_bytes(models))
        estimate = replace(estimate, peak_memory_bytes=most)
    return Cost(estimate, statistics, tuple(findings))


def go_on(findings: tuple[Finding, ...]) -> None:
    """Raises ``PlanRefused`` where one of them is an error."""
    if any(finding.severity == "error" for finding in findings):
        raise PlanRefused(findings)


def _used_models(recipe: Recipe, reference: str) -> tuple[str, ...]:
    """Keys of the models that are read, the reference first."""
    policies = [*recipe.classes.values(), *(override.policy for _, override in recipe.placed_overrides())]
    based = (
        recipe.from_base
        or "base" in policies
        or recipe.missing == "fill"
        or (uses_base(recipe) and (not recipe.slices or any(part.base == "base" for part in recipe.slices)))
    )
    base = ("base",) if recipe.base is not None and based else ()
    return tuple(dict.fromkeys((reference, *base, *recipe.source_ids())))


def _mixed_dtypes(models: Mapping[str, ModelIndex], used: Sequence[str]) -> Iterator[Finding]:
    ours = {info.dtype for info in models[used[0]].tensors.values()} & FLOATS
    for key in used[1:]:
        theirs = {info.dtype for info in models[key].tensors.values()} & FLOATS
        if theirs != ours:
            message = (
                f"{models[key].label} is in {_words(theirs)}, {models[used[0]].label} in {_words(ours)}."
            )
            yield warning("dtype_differs", message, model=key)


def _words(names: set[str] | frozenset[str]) -> str:
    return " and ".join(sorted(names)) or "nothing"
