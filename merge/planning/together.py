"""Statistics that take several models at once, as planned: what they depend on, what they cost, and what
stands in the way. Loads no torch.

``gram_merged`` (RegMean++) depends on everything that decides the merged tensors; ``votes`` (RCP) and
``mask`` (Localize-and-Stitch) on one other model and on a few settings, so that changing anything else of a
recipe finds them again.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.arch.roles import is_conv1d
from merge.catalog import MethodEntry
from merge.checkpoint.index import ModelIndex
from merge.contract.informed import KINDS
from merge.errors import Finding
from merge.learn.forecast import (
    FLOAT32,
    LARGE_BYTES,
    bytes_whole,
    can_stream,
    largest_stage,
    scratch_bytes,
    seconds,
)
from merge.learn.samples import Samples
from merge.learn.statistics import statistics_digest
from merge.planning.output_tensor import OutputTensor
from merge.recipe.findings import error
from merge.recipe.recipe import Recipe
from merge.recipe.stages import stage_of

THROUGH = "gram_merged"
OTHER = {"votes": 0, "mask": -1}
"""The place among an output's sources of the other model that a kind takes; -1 is the base."""
_VERSION = 1


@dataclass(frozen=True)
class Asked:
    """What joint statistics are asked for: ``kinds`` by model key, with the plan's parts that decide them."""

    recipe: Recipe
    models: Mapping[str, ModelIndex]
    outputs: Sequence[OutputTensor]
    steps: Sequence[MethodEntry]
    kinds: Mapping[str, Sequence[str]]

    def digests(self, weights: Mapping[str, str], samples: Mapping[str, Samples]) -> dict[str, str]:
        """What each model's joint statistics are found by. ``weights`` are the digests of all models'
        weights, ``samples`` what they are run on, by model key; empty where anything of that is not known.
        """
        if not self.is_known(weights, samples):
            return {}
        found = {}
        for key, kinds in self.kinds.items():
            tokenizer = self.models[key].tokenizer
            found[key] = statistics_digest(
                weights[key],
                tokenizer.rules if tokenizer is not None else None,
                samples[key].sha256,
                kinds,
                self.settings(key, weights, samples),
            )
        return found

    def is_known(self, weights: Mapping[str, str], samples: Mapping[str, Samples]) -> bool:
        """Whether everything that digests are made of is there."""
        used = {each.model for output in self.outputs for each in output.inputs}
        return used <= weights.keys() and self.kinds.keys() <= samples.keys()

    def settings(
        self, key: str, weights: Mapping[str, str], samples: Mapping[str, Samples]
    ) -> dict[str, Any]:
        """The settings in the manifest of a model's joint statistics: what they depend on besides the model
        and its data.
        """
        data = {name: self._read_by(name, each) for name, each in samples.items()}
        asked = (self.recipe, self.outputs, self.steps, key, self.kinds[key], weights, data)
        return {**samples[key].settings, **_depends(*asked)}

    def _read_by(self, key: str, samples: Samples) -> list[Any]:
        """What decides which tokens a model reads of a set."""
        tokenizer = self.models[key].tokenizer
        return [samples.sha256, samples.lines, tokenizer.rules if tokenizer is not None else None]


def _depends(
    recipe: Recipe,
    outputs: Sequence[OutputTensor],
    steps: Sequence[MethodEntry],
    key: str,
    kinds: Sequence[str],
    models: Mapping[str, str],
    data: Mapping[str, list[Any]],
) -> dict[str, Any]:
    facts = {}
    for kind in kinds:
        if kind == THROUGH:
            facts[kind] = {"of": key, **_whole_recipe(recipe, outputs, steps, models, data)}
        else:
            facts[kind] = _settings_of(outputs, steps, key, kind, models, data)
    text = json.dumps({"version": _VERSION, **facts}, sort_keys=True, separators=(",", ":"))
    return {"joint": hashlib.sha256(text.encode()).hexdigest()}


def _whole_recipe(
    recipe: Recipe,
    outputs: Sequence[OutputTensor],
    steps: Sequence[MethodEntry],
    models: Mapping[str, str],
    data: Mapping[str, list[Any]],
) -> dict[str, Any]:
    merged = [
        [o.name, o.policy, [*o.settings], [*o.weights], [[i.model, i.tensor] for i in o.inputs]]
        for o in outputs
    ]
    return {
        "steps": [[step.name, step.version] for step in steps],
        "seed": recipe.seed,
        "compute": recipe.dtype.compute,
        "merged": merged,
        "models": dict(models),
        "data": dict(data),
    }


def _settings_of(
    outputs: Sequence[OutputTensor],
    steps: Sequence[MethodEntry],
    key: str,
    kind: str,
    models: Mapping[str, str],
    data: Mapping[str, list[Any]],
) -> dict[str, Any]:
    other = other_of(outputs, kind)
    entries = [
        [next(each.tensor for each in output.sources if each.model == key), knobs]
        for output, knobs in asking(outputs, steps, kind)
        if any(each.model == key for each in output.sources)
    ]
    own = {"data": data[other]} if kind == "votes" else {}
    return {"entries": entries, "model": models[other], **own}


def other_of(outputs: Sequence[OutputTensor], kind: str) -> str:
    """The key of the model that a kind takes besides the one it is of."""
    place = OTHER[kind]
    return next(
        o.sources[place].model if place >= 0 else "base"
        for o in outputs
        if o.policy == "method" and o.sources
    )


def asking(
    outputs: Sequence[OutputTensor], steps: Sequence[MethodEntry], kind: str
) -> Iterator[tuple[OutputTensor, dict[str, Any]]]:
    """The outputs that are made with a statistic, and the settings it depends on."""
    asked = [(place, told) for place, step in enumerate(steps) for told in step.statistics]
    for place, told in asked:
        if told["kind"] == kind:
            known = steps[place].settings
            for output in outputs:
                if output.policy == "method":
                    given = output.settings[place]
                    knobs = told.get("knobs", ())
                    yield output, {name: given.get(name, known[name]["default"]) for name in knobs}


def joint_cost(
    model: ModelIndex, kinds: Sequence[str], recipe: Recipe, outputs: Sequence[OutputTensor], held: int
) -> tuple[float, int, int]:
    """Seconds, bytes of memory and of disk for one model, roughly; with what lies there only meanwhile.
    ``held`` are the bytes of matrices while a tensor is merged.
    """
    texts = (recipe.calibration.documents, recipe.calibration.tokens)
    widths = [
        info.shape[0 if is_conv1d(info.name, model.config) else -1]
        for info in model.tensors.values()
        if len(info.shape) in (2, 3)
    ]
    whole = can_stream(model.config) is False
    epochs = max((s["epochs"] for o in outputs for s in o.settings if "epochs" in s), default=10)
    spent, memory, disk = 0.0, 0, scratch_bytes(model, kinds, *texts)
    for kind in kinds:
        once = seconds(model, [kind], *texts)
        needed = bytes_whole(model, [kind]) if whole else largest_stage(model, [kind], *texts)
        if kind == THROUGH:
            others = (len(recipe.sources) - 1) * LARGE_BYTES
            needed = others + max(needed, largest_stage(model, ["mean_abs_input"], *texts) + held)
        spent += once * {THROUGH: 2, "mask": epochs}.get(kind, 1)
        memory = max(memory, needed)
        entries = sum(width**2 for width in widths) if kind == THROUGH else model.parameters
        disk += FLOAT32 * entries * (3 if kind == "mask" else 1)
    return spent, memory, disk


def check_joint(
    recipe: Recipe,
    models: Mapping[str, ModelIndex],
    outputs: Sequence[OutputTensor],
    steps: Sequence[MethodEntry],
    joint: Mapping[str, Sequence[str]],
) -> Iterator[Finding]:
    """Recipes in which the models cannot be run beside each other, layer by layer."""
    named = " and ".join(step.title for step in steps if any(_is_joint(told) for told in step.statistics))
    through = any(THROUGH in kinds for kinds in joint.values())
    reasons = []
    if recipe.slices:
        reasons.append(("slices", "the result's layers are not the sources' layers (slices)"))
    if any(each.rows is not None for output in outputs for each in output.inputs):
        reasons.append(("tokenizer", "the vocabularies are rearranged (tokenizer)"))
    if recipe.result.form == "moe" or (through and recipe.result.form != "checkpoint"):
        reasons.append(("result", f"the result is of the form {recipe.result.form}"))
    for field, reason in reasons:
        message = f"{named}: the models are run beside each other, which does not work where {reason}."
        yield error("joint_statistics", message, field)
    for key in dict.fromkeys(each.model for output in outputs for each in output.inputs):
        if stage_of(models[key].label) is not None:
            message = f"{named} runs every model it merges, so none of them can be another stage's result."
            yield error("joint_statistics", message, model=key)
        if through and key in joint and can_stream(models[key].config) is False:
            message = f"{models[key].label} cannot be run layer by layer, which {named} needs."
            yield error("joint_statistics", message, model=key)
    if through:
        yield from _check_steps(outputs, steps, named)
    if any("mask" in kinds for kinds in joint.values()):
        for name in ("sparsity", "epochs"):
            if len({knobs[name] for _, knobs in asking(outputs, steps, "mask")}) > 1:
                message = f"{named} trains all tensors together: {name} must be the same for all of them."
                yield error("joint_statistics", message, "overrides")


def _is_joint(told: Mapping[str, Any]) -> bool:
    return KINDS[told["kind"]].joint


def _check_steps(
    outputs: Sequence[OutputTensor], steps: Sequence[MethodEntry], named: str
) -> Iterator[Finding]:
    """A layer is merged before the next one is seen, so nothing can be ranked over all layers."""
    for place, step in enumerate(steps):
        known = step.settings
        for stat in step.needs["stats"]:
            scope, everywhere = stat.get("scope"), stat.get("everywhere", "global")
            values = {
                output.settings[place].get(scope, known[scope]["default"])
                for output in outputs
                if scope in known and output.policy == "method"
            }
            if everywhere in values:
                message = (
                    f"{named} merges layer by layer, so {step.name} beside it cannot measure over the whole "
                    f"model: set {scope} to another value than {everywhere}."
                )
                yield error("joint_statistics", message, "steps", place, scope)
