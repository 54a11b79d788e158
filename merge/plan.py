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
from functools import partial
from math import prod
from typing import Any, Literal

from merge.arch.layer_config import recut
from merge.catalog import MethodEntry, catalogue
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.layout import ShardLayout
from merge.checks import check_models, check_needs, check_settings, check_steps, error, warning
from merge.effective import by_class
from merge.errors import Finding, PlanRefused
from merge.estimate import (
    Estimate,
    check_room,
    estimate_of,
    granularity_of,
    with_measuring,
    with_vocabulary,
)
from merge.forms.adapter import AdapterPlan
from merge.forms.asked import check_result
from merge.forms.bundle import BundlePlan
from merge.forms.factored import check_factors, check_saved, factor_bytes
from merge.forms.formed import form
from merge.forms.moe import MoePlan
from merge.inputs import in_one_language, lend_configs
from merge.measuring import NOTHING_MEASURED, StatisticsPlan, plan_statistics
from merge.members import with_members
from merge.outputs import (
    FLOATS,
    OutputTensor,
    reference_key,
    resolve_outputs,
    tensors_read,
    uses_base,
)
from merge.recipe import Recipe, canonical, recipe_digest
from merge.recipe_stages import key_in, parted, stage_of, within
from merge.stages import NO_STAGES, Staged, plan_stages
from merge.together import Asked
from merge.tokenizer.align import RowTable
from merge.tokenizer.planned import VocabularyPlan, plan_vocabulary

ENGINE_VERSION = 2
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
        own = self.adapter or (self.bundle if self.bundle is not None and self.bundle.kept else None)
        read = tensors_read(self.outputs) if own is None else own.tensors_read()
        lent = self.vocabulary.tensors_read(key) if key in self.rows and self.vocabulary else ()
        guiding = self.moe.tensors_read(key, self.models[key]) if self.moe is not None else ()
        return frozenset({*read.get(key, ()), *lent, *guiding})

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
    findings = check_recipe(recipe)
    if _stops(findings):
        return None, findings
    staged, told = plan_stages(recipe, models, partial(plan_or_findings, budget=budget))
    findings = tuple(dict.fromkeys((*told, *findings)))
    if staged is None or _stops(findings):
        return None, findings
    reference, models = reference_key(recipe), lend_configs(staged.own())
    used = _used_models(recipe, reference)
    missing = [key for key in used if key not in models]
    if missing:
        return None, (
            *findings,
            *(error("model_missing", f"The model {key} was not given.") for key in missing),
        )
    models, told = in_one_language(models, used)
    findings += told
    vocabulary, told = plan_vocabulary(recipe, models, reference)
    merged = [*used, *(key for key in ("base",) if vocabulary and key in vocabulary.tables)]
    findings += (*told, *check_models(models, list(dict.fromkeys(merged)), aligned=recipe.tokenizer.aligns))
    if any(finding.code in ("architecture_mismatch", "quantized") for finding in findings):
        return None, findings
    outcome = resolve_outputs(recipe, models, vocabulary)
    formed = form(recipe, models, outcome)
    adapter, moe, outcome = formed.adapter, formed.moe, formed.outcome
    findings += (*outcome.findings, *check_saved(recipe, models, outcome.tensors))
    findings += cut_config(models, reference, outcome.layers)[1]
    findings += tuple(_mixed_dtypes(models, used))
    shards = formed.shards(recipe, models[reference])
    steps = tuple(catalogue()[step.method] for step in recipe.steps)
    estimate = estimate_of(recipe, models, outcome, shards, steps, budget, adapter)
    if vocabulary is not None:
        estimate = with_vocabulary(estimate, vocabulary, recipe, models, outcome)
        findings += tuple(vocabulary.check_room(recipe.tokenizer.k, budget))
    statistics, told = plan_statistics(recipe, models, outcome.tensors, steps, measured, budget)
    estimate = staged.estimate(with_measuring(estimate, statistics), recipe, outcome.tensors)
    held = staged.held_bytes(recipe) + factor_bytes(recipe, models, outcome.tensors)
    held += formed.held_bytes
    findings += (
        *told,
        *staged.check_room(budget),
        *check_room(recipe, outcome, steps, estimate, budget, scratch_free, adapter, statistics, held),
    )
    if moe is not None:
        findings += tuple(moe.check_room(models, budget))
    if _stops(findings):
        return None, findings
    kept = {key: models[key] for key in dict.fromkeys((*used, *models)) if key in models}
    read = dict.fromkeys((*used, *(vocabulary.tables if vocabulary is not None else ())))
    digest = _digest(recipe, {key: kept[key] for key in read}, steps, vocabulary)
    kept |= staged.leaves()
    plan = Plan(
        recipe,
        digest,
        kept,
        reference,
        steps,
        outcome.tensors,
        shards,
        findings,
        estimate,
        "cpu",
        tuple(notes),
        adapter,
        vocabulary,
        outcome.layers,
        moe,
        statistics,
        staged,
        formed.bundle,
    )
    return with_members(plan, partial(plan_or_findings, budget=budget))


def _stops(findings: Sequence[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


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


def cut_config(
    models: Mapping[str, ModelIndex], reference: str, layers: Mapping[str, Sequence[tuple[str, int]]]
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """The reference's config for the layers that the result has, and what should be known of it."""
    config = dict(models[reference].config)
    findings: list[Finding] = []
    for tower, origins in layers.items():
        made = recut(config, tower, [(models[key].config, layer) for key, layer in origins])
        config = made.config
        for remark in made.remarks:
            findings.append(warning("layer_rule", remark, model=reference))
        if made.unstated:
            message = (
                f"The config of {models[reference].label} says nowhere how many layers {tower} has, so it "
                "cannot be written for the result."
            )
            findings.append(error("layer_count_unstated", message, model=reference))
    return config, tuple(findings)


def _digest(
    recipe: Recipe,
    models: Mapping[str, ModelIndex],
    steps: Sequence[MethodEntry],
    vocabulary: VocabularyPlan | None,
) -> str:
    facts: dict[str, Any] = {
        "engine": ENGINE_VERSION,
        "methods": {step.name: step.version for step in steps},
        "models": {key: index.digest for key, index in models.items()},
    }
    if vocabulary is not None:
        facts["vocabulary"] = vocabulary.alignment.digest()
    return hashlib.sha256(canonical(recipe) + json.dumps(facts, sort_keys=True).encode()).hexdigest()
