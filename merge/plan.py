"""From a recipe and the headers of its models to an exact plan of the output; reads no weights, loads no
torch.

Everything that can be known to fail is found here and told as findings, all at once.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

from merge.catalog import MethodEntry, catalogue
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.layout import ShardLayout, plan_shards
from merge.checks import check_models, check_needs, check_settings, check_steps, error, warning
from merge.errors import Finding, PlanRefused
from merge.outputs import FLOATS, Outcome, OutputTensor, inputs_of, reference_key, resolve_outputs, uses_base
from merge.recipe import Recipe, canonical, recipe_digest
from merge.sizing import needed_budget, seconds, sizes

ENGINE_VERSION = 1
"""Goes up whenever the same plan would give other bytes."""
ASSUMED_THREADS = 2


@dataclass(frozen=True)
class Estimate:
    """What a merge will take. Bytes and seconds; ``peak_memory_bytes`` is beyond the interpreter's own."""

    download_bytes: int
    disk_bytes: int
    peak_memory_bytes: int
    output_bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What ``merge.run`` carries out. ``models`` are keyed ``base`` and by source id; ``reference`` is one of
    the keys.

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

    @property
    def granularity(self) -> str:
        """The coarsest of the steps': what must be in memory together."""
        return _granularity(self.steps)

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
            "classes": list(_by_class(self)),
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
            "estimate": asdict(self.estimate),
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
) -> Plan:
    """The plan of a recipe on these models (keyed ``base`` and by source id, adapters attached).

    ``budget`` and ``scratch_free`` are bytes of memory and of disk. Raises ``PlanRefused`` with every
    finding.
    """
    plan, findings = plan_or_findings(recipe, models, budget=budget, scratch_free=scratch_free, notes=notes)
    if plan is None:
        raise PlanRefused(findings)
    return plan


def check_recipe(recipe: Recipe) -> tuple[Finding, ...]:
    """What is wrong with a recipe whatever its models are: methods, settings, chain, number of sources."""
    findings = tuple(check_steps(recipe))
    return findings or (*check_settings(recipe), *check_needs(recipe))


def plan_or_findings(
    recipe: Recipe,
    models: Mapping[str, ModelIndex],
    *,
    budget: int,
    scratch_free: int | None = None,
    notes: Sequence[str] = (),
) -> tuple[Plan | None, tuple[Finding, ...]]:
    """As ``make_plan``, but gives ``(None, findings)`` instead of raising."""
    findings = check_recipe(recipe)
    if _stops(findings):
        return None, findings
    reference = reference_key(recipe)
    used = _used_models(recipe, reference)
    missing = [key for key in used if key not in models]
    if missing:
        return None, (
            *findings,
            *(error("model_missing", f"The model {key} was not given.") for key in missing),
        )
    findings += tuple(check_models(models, used))
    if any(finding.code in ("architecture_mismatch", "quantized") for finding in findings):
        return None, findings
    outcome = resolve_outputs(recipe, models)
    findings += outcome.findings
    findings += tuple(_mixed_dtypes(models, used))
    shards = plan_shards([(o.name, o.dtype, o.shape) for o in outcome.tensors], recipe.shard_bytes)
    steps = tuple(catalogue()[step.method] for step in recipe.steps)
    estimate = _estimate(recipe, models, used, outcome, shards, steps, budget)
    findings += tuple(_check_room(recipe, outcome, steps, estimate, budget, scratch_free))
    if _stops(findings):
        return None, findings
    kept = {key: models[key] for key in dict.fromkeys((*used, *models)) if key in models}
    digest = _digest(recipe, {key: kept[key] for key in used}, steps)
    return Plan(
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
    ), findings


def _stops(findings: Sequence[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


def _used_models(recipe: Recipe, reference: str) -> tuple[str, ...]:
    """Keys of the models that are read, the reference first."""
    policies = [*recipe.classes.values(), *(o.policy for o in recipe.overrides)]
    base = ("base",) if recipe.base is not None and (uses_base(recipe) or "base" in policies) else ()
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


def _granularity(steps: Sequence[MethodEntry]) -> str:
    return min((step.granularity for step in steps), key=("tensor", "row", "element").index)


def whole_entries(granularity: str, outputs: Sequence[OutputTensor]) -> tuple[int, str]:
    """Most entries that must be in memory together, and the tensor that needs them."""
    if granularity == "element":
        return 1, ""
    merged = [o for o in outputs if o.policy == "method"]
    sized = [(prod(o.shape) if granularity == "tensor" else prod(o.shape[1:]), o.name) for o in merged]
    return max(sized, default=(1, ""))


def compute_bytes(recipe: Recipe) -> int:
    """Bytes of one number while it is computed."""
    return 8 if recipe.dtype.compute == "float64" else 4


def _estimate(
    recipe: Recipe,
    models: Mapping[str, ModelIndex],
    used: Sequence[str],
    outcome: Outcome,
    shards: Sequence[ShardLayout],
    steps: Sequence[MethodEntry],
    budget: int,
) -> Estimate:
    reading = sum(models[key].bytes for key in used)
    adapters = sum(index.adapter.bytes for key in used if (index := models[key]).adapter is not None)
    written = sum(shard.size for shard in shards)
    rounds = sum(stat["rounds"] for step in steps for stat in step.needs["stats"] if "when" not in stat)
    whole, _ = whole_entries(_granularity(steps), outcome.tensors)
    fitted = sizes(len(recipe.sources) + 1, compute_bytes(recipe), whole, ASSUMED_THREADS, budget)
    return Estimate(
        download_bytes=reading + adapters,
        disk_bytes=reading + adapters + written,
        peak_memory_bytes=fitted.peak_bytes if fitted else budget,
        output_bytes=written,
        seconds=round(seconds(reading, 1 + rounds, written), 1),
    )


def _check_room(
    recipe: Recipe,
    outcome: Outcome,
    steps: Sequence[MethodEntry],
    estimate: Estimate,
    budget: int,
    scratch_free: int | None,
) -> Iterator[Finding]:
    granularity = _granularity(steps)
    whole, tensor = whole_entries(granularity, outcome.tensors)
    needed = needed_budget(len(recipe.sources) + 1, compute_bytes(recipe), whole)
    if needed > budget:
        what = f" to hold {tensor} (granularity {granularity})" if tensor else ""
        message = f"The memory budget is {budget} bytes, but {needed} are needed{what}."
        yield error("budget_too_small", message, tensor=tensor or None)
    if scratch_free is not None and estimate.disk_bytes > scratch_free:
        message = f"Inputs and result need {estimate.disk_bytes} bytes of disk, but {scratch_free} are free."
        yield error("disk_too_small", message)


def _digest(recipe: Recipe, models: Mapping[str, ModelIndex], steps: Sequence[MethodEntry]) -> str:
    facts = {
        "engine": ENGINE_VERSION,
        "methods": {step.name: step.version for step in steps},
        "models": {key: index.digest for key, index in models.items()},
    }
    return hashlib.sha256(canonical(recipe) + json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _by_class(plan: Plan) -> Iterator[dict[str, Any]]:
    groups: dict[tuple[str, str], list[OutputTensor]] = {}
    for output in plan.outputs:
        groups.setdefault((output.role, output.policy), []).append(output)
    for (role, policy), tensors in groups.items():
        row: dict[str, Any] = {
            "class": role,
            "policy": policy,
            "tensors": len(tensors),
            "parameters": sum(prod(output.shape) for output in tensors),
            "example": tensors[0].name,
            "models": list(inputs_of(policy, plan.recipe)),
        }
        if policy == "method":
            row["weights"] = _spread([output.weights for output in tensors])
            row["steps"] = [_effective(entry, place, tensors) for place, entry in enumerate(plan.steps)]
        yield row


def _effective(entry: MethodEntry, place: int, tensors: Sequence[OutputTensor]) -> dict[str, Any]:
    different = list({id(output.settings[place]): output.settings[place] for output in tensors}.values())
    settings = {}
    for name, known in entry.settings.items():
        found = [_filled(settings.get(name), known["default"]) for settings in different]
        settings[name] = _spread(found)
    return {"method": entry.name, "settings": settings}


def _filled(value: Any, default: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(default if entry is None else entry for entry in value)
    return default if value is None else value


def _spread(values: Sequence[Any]) -> Any:
    """One value where all are equal, else the least and the greatest."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return list(distinct[0]) if isinstance(distinct[0], tuple) else distinct[0]
    plain = sorted(distinct, key=lambda value: (str(type(value)), value))
    return {"from": plain[0], "to": plain[-1]}
