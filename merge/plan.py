"""From a recipe and the headers of its models to an exact plan of the output; reads no weights, loads no
torch.

Everything that can be known to fail is found here and told as findings, all at once.
"""

import gc
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from math import prod
from typing import Any, Literal

from merge.catalog import MethodEntry
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.layout import ShardLayout
from merge.errors import Finding, PlanRefused
from merge.planning import draft
from merge.planning.checks import check_needs, check_settings, check_steps
from merge.planning.draft import Given
from merge.planning.effective import by_class
from merge.planning.estimate import Estimate, demand_of, granularity_of
from merge.planning.forms.adapter import AdapterPlan
from merge.planning.forms.asked import check_result
from merge.planning.forms.bundle import BundlePlan
from merge.planning.forms.factored import check_factors
from merge.planning.forms.moe import MoePlan
from merge.planning.measuring import NOTHING_MEASURED, StatisticsPlan
from merge.planning.members import with_members
from merge.planning.outputs import OutputTensor, tensors_read
from merge.planning.result_config import cut_config
from merge.planning.sizing import Demand
from merge.planning.stages import NO_STAGES, Staged
from merge.planning.together import Asked
from merge.recipe.recipe import Recipe, canonical, recipe_digest
from merge.recipe.stages import key_in, parted, stage_of, within
from merge.tokenizer.align import RowTable
from merge.tokenizer.planned import VocabularyPlan

ENGINE_VERSION = 8
"""Goes up whenever the same plan would give other bytes (docs/decisions/019-engine-version.md)."""


@dataclass(frozen=True)
class Plan:
    """What ``merge.run`` carries out. ``models`` are keyed ``base`` and by source id, those that go into
    stages ``<stage>.<key>``; ``reference`` is one of the keys.

    ``digest`` covers the recipe, the structure of every input, the method versions and the engine's: equal
    digests (and equal weights) give equal bytes.
    """

    recipe: Recipe
    digest: str
    models: Mapping[str, ModelIndex]
    reference: str
    steps: tuple[MethodEntry, ...]
    outputs: tuple[OutputTensor, ...]
    shards: tuple[ShardLayout, ...]
    findings: tuple[Finding, ...]
    estimate: Estimate
    queue: Literal["cpu", "gpu"]
    notes: tuple[str, ...] = ()
    adapter: AdapterPlan | None = None
    vocabulary: VocabularyPlan | None = None
    layers: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    moe: MoePlan | None = None
    statistics: StatisticsPlan = NOTHING_MEASURED
    staged: Staged = NO_STAGES
    bundle: BundlePlan | None = None
    members: Mapping[str, "Plan"] = field(default_factory=dict)
    """What a twin bundle keeps of each source, as adapters over its merge."""

    def weight_files(self, key: str) -> tuple[str, ...]:
        """The weight files of a model that hold anything the outputs are made from; all of one that is to be
        measured.
        """
        if key in self.statistics.missing or (self.statistics.joint_missing and key in self.models):
            return self.models[key].shards
        stage, own = parted(key)
        if stage is not None:
            return self.staged.stages[stage].plan.weight_files(own)
        return self.models[key].files_of(self.tensors_of(key))

    def tensors_of(self, key: str) -> frozenset[str]:
        """The tensors of a model, not of a stage's, that the outputs are made from."""
        if self.bundle is not None and self.bundle.keeps_base and key == "base":
            return frozenset(self.models[key].tensors)
        lent = self.vocabulary.tensors_read(key) if key in self.rows and self.vocabulary else ()
        guiding = self.moe.tensors_read(key, self.models[key]) if self.moe is not None else ()
        return frozenset({*self._read.get(key, ()), *lent, *guiding})

    @cached_property
    def _read(self) -> Mapping[str, frozenset[str]]:
        own = self.adapter or (self.bundle if self.bundle is not None and self.bundle.kept else None)
        return tensors_read(self.outputs) if own is None else own.tensors_read()

    @property
    def joint(self) -> Asked:
        """The statistics that take several models."""
        return Asked(self.recipe, self.models, self.outputs, self.steps, self.statistics.joint)

    def parts(self) -> Iterator["Plan"]:
        """This plan, then those of its stages."""
        yield self
        yield from (stage.plan for stage in self.staged.stages.values())

    @property
    def written_because(self) -> str | None:
        """Why the result must be written and cannot be made in memory, if so: a clause for the reader."""
        forms = {"an adapter": self.adapter, "a mixture of experts": self.moe, "a bundle": self.bundle}
        reasons = [f"its result is {form}" for form, asked in forms.items() if asked is not None]
        reasons += ["it has stages"] if self.staged.stages else []
        reasons += ["it lines up vocabularies"] if self.vocabulary is not None else []
        return reasons[0] if reasons else None

    @property
    def origin(self) -> str:
        """The key of the model that config and small files come from in the end, through all stages."""
        key, part = self.reference, self
        while (name := stage_of(part.models[part.reference].label)) is not None:
            part = self.staged.stages[name].plan
            key = key_in(name, part.reference)
        return key

    def result_config(self) -> dict[str, Any]:
        """The config of the reference model, rewritten where layers were cut."""
        config = cut_config(self.models, self.reference, self.layers)[0]
        return config if self.moe is None else self.moe.config(config)

    @property
    def code(self) -> Mapping[str, str]:
        """The classes that the result is loaded with where transformers has none."""
        return self.moe.code if self.moe is not None else {}

    def form_summary(self) -> dict[str, Any]:
        """The form of the result, and what the plan says about it."""
        made = self.adapter or self.moe or self.bundle
        told = {"form": self.recipe.result.form, **(made.summary() if made is not None else {})}
        own = {member: plan.estimate.output_bytes for member, plan in self.members.items()}
        return told | ({"member_bytes": own, "bytes": self.estimate.output_bytes} if own else {})

    @property
    def rows(self) -> Mapping[str, RowTable]:
        """The row tables by which inputs are read, by name; none where all have one vocabulary."""
        return self.vocabulary.tables if self.vocabulary is not None else {}

    @cached_property
    def demand(self) -> Demand:
        """What it holds in memory."""
        beside = self.bundle.held_bytes if self.bundle is not None else 0
        return demand_of(self.recipe, self.models, self.outputs, self.steps, beside, self.vocabulary)

    @property
    def granularity(self) -> str:
        """The coarsest of the steps': what must be in memory together."""
        return granularity_of(self.steps)

    def summary(self) -> dict[str, Any]:
        """Plain JSON for people: effective settings by tensor class, counts, estimate, findings, translation
        notes.
        """
        parameters = sum(prod(output.shape) for output in self.outputs)
        return {
            "digest": self.digest,
            "recipe_sha256": recipe_digest(self.recipe),
            "steps": [
                {"method": e.name, "kind": e.kind, "version": e.version, "title": e.title} for e in self.steps
            ],
            "classes": list(by_class(self.outputs, self.steps)),
            "counts": {
                "tensors": len(self.outputs),
                "parameters": parameters,
                "files": len(self.shards),
                "models": len(self.models),
            },
            "output": {
                "dtypes": sorted({output.dtype for output in self.outputs}),
                "reference": self.reference,
            },
            "result": self.form_summary(),
            "estimate": asdict(self.estimate),
            "statistics": self.statistics.summary(),
            "stages": {name: stage.summary() for name, stage in self.staged.stages.items()},
            "vocabulary": self.vocabulary.summary() if self.vocabulary is not None else None,
            "queue": self.queue,
            "findings": [finding.as_dict() for finding in self.findings],
            "translation": list(self.notes),
        }


def make_plan(
    recipe: Recipe,
    models: Mapping[str, ModelIndex],
    *,
    budget: int,
    scratch_free: int | None = None,
    notes: Sequence[str] = (),
    measured: Collection[str] = (),
) -> Plan:
    """The plan of a recipe on these models (keyed ``base`` and by source id, adapters attached).

    ``budget`` and ``scratch_free`` are bytes of memory and of disk, ``measured`` the keys of models whose
    statistics on data are at hand. Raises ``PlanRefused`` with every finding.
    """
    plan, findings = plan_or_findings(
        recipe, models, budget=budget, scratch_free=scratch_free, notes=notes, measured=measured
    )
    if plan is None:
        raise PlanRefused(findings)
    return plan


def check_recipe(recipe: Recipe) -> tuple[Finding, ...]:
    """What is wrong with a recipe whatever its models are: methods, settings, chain, number of sources."""
    stages = [each for name, part in recipe.stages.items() for each in within(name, check_recipe(part))]
    findings = tuple(check_steps(recipe))
    checks = (check_settings, check_needs, check_factors, check_result)
    return (*stages, *(findings or (each for check in checks for each in check(recipe))))


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keeps Python from looking for garbage while hundreds of thousands of small objects are made that all
    stay: with 20,000 tensors that search takes half of the time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@collector_at_rest()
def plan_or_findings(
    recipe: Recipe,
    models: Mapping[str, ModelIndex],
    *,
    budget: int,
    scratch_free: int | None = None,
    notes: Sequence[str] = (),
    measured: Collection[str] = (),
) -> tuple[Plan | None, tuple[Finding, ...]]:
    """As ``make_plan``, but gives ``(None, findings)`` instead of raising."""
    again = partial(plan_or_findings, budget=budget)
    try:
        given = draft.take_in(recipe, models, check_recipe(recipe), again)
        drafted = draft.lay_out(recipe, given)
        cost = draft.reckon(recipe, given, drafted, measured, budget, scratch_free)
        findings = (*given.findings, *drafted.findings, *cost.findings)
        draft.go_on(findings)
    except PlanRefused as refused:
        return None, refused.findings
    plan = Plan(
        recipe,
        _digest(recipe, given, drafted.steps),
        given.kept,
        given.reference,
        drafted.steps,
        drafted.outcome.tensors,
        drafted.shards,
        findings,
        cost.estimate,
        "cpu",
        tuple(notes),
        drafted.formed.adapter,
        given.vocabulary,
        drafted.outcome.layers,
        drafted.formed.moe,
        cost.statistics,
        given.staged,
        drafted.formed.bundle,
    )
    return with_members(plan, again)


def _digest(recipe: Recipe, given: Given, steps: Sequence[MethodEntry]) -> str:
    facts: dict[str, Any] = {
        "engine": ENGINE_VERSION,
        "methods": {step.name: step.version for step in steps},
        "models": {key: given.models[key].digest for key in given.read},
    }
    if given.vocabulary is not None:
        facts["vocabulary"] = given.vocabulary.alignment.digest()
    return hashlib.sha256(canonical(recipe) + json.dumps(facts, sort_keys=True).encode()).hexdigest()
