"""How an order of each kind is planned.

A new kind of job is a class in ``jobs/request.py``, a planner here, and a story in ``worker/run_job.py``.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Protocol, Self, TypeVar

from hub.errors import FileMissing as HubFileMissing
from jobs import candidates, evaluating
from jobs.calibration import hub_place
from jobs.errors import PlanTimeout, RequestInvalid
from jobs.evaluating import FLOAT_BYTES
from jobs.fetching import sizes_of
from jobs.pinned import PinnedInput
from jobs.places import JOB_NAME
from jobs.planning import Planned, Planner, download_bytes
from jobs.remarks import remarks
from jobs.request import (
    JobOrder,
    JobRequest,
    MaterialiseRequest,
    RouterRequest,
    ScoreRequest,
    SearchRequest,
    full,
)
from jobs.sets import CHECK, EvalSet
from jobs.wishes import Wish
from merge.bundle.gate import gate_files, gate_weight
from merge.bundle.recipe import base_of, materialise_recipe
from merge.checkpoint.bundle import ADAPTERS, BundleIndex
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding, GateUnsupported, PlanRefused
from merge.file_errors import BundleBaseChanged, FileRefused
from merge.plan import check_recipe
from merge.planning.forms.moe import FORWARD_BYTES
from merge.recipe.recipe import Recipe, recipe_from
from merge.recipe.stages import ADAPTER
from scoring.settings import EMBEDDING, LIKELIHOOD

GATE_COPIES = 8 * FLOAT_BYTES
"""Bytes for one entry of a weight that is read of every member and decomposed: four numbers of float64."""
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
CLASSIFIER = "ForSequenceClassification"
NOT_CAUSAL = (CLASSIFIER, "ForImageClassification", "ForTokenClassification", "ForMaskedLM", "CLIPModel")


class Ready(Protocol):
    """What planning gives of a job of any kind."""

    @property
    def summary(self) -> dict[str, Any]: ...
    @property
    def inputs(self) -> tuple[PinnedInput, ...]: ...
    @property
    def queue(self) -> str: ...
    @property
    def findings(self) -> tuple[Finding, ...]: ...
    @property
    def subject(self) -> dict[str, Any]:
        """What the job works on, every model pinned."""

    def saying(self, facts: Mapping[str, Any]) -> Self:
        """The same, with more in its summary."""


R = TypeVar("R", bound=Ready)


@dataclass(frozen=True)
class PlannedModels:
    """Models that a job reads and does not merge, pinned. ``subject`` is what the row of the job has."""

    summary: dict[str, Any]
    inputs: tuple[PinnedInput, ...]
    queue: str
    findings: tuple[Finding, ...]
    subject: dict[str, Any]
    models: Mapping[str, ModelIndex]

    def saying(self, facts: Mapping[str, Any]) -> "PlannedModels":
        """The same, with more in its summary."""
        return replace(self, summary={**self.summary, **facts})


@dataclass(frozen=True)
class Asking:
    """Who wants a plan, within how many seconds from now, and with how much room on the disk."""

    planner: Planner
    token: str | None
    tenant: str
    deadline_seconds: float | None = None
    notes: tuple[str, ...] = ()
    scratch_free: int | None = None
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float | None:
        """Seconds that are left of the deadline."""
        if self.deadline_seconds is None:
            return None
        return max(0.0, self.deadline_seconds - (time.monotonic() - self.begun))


def plan_order(order: JobOrder, asking: Asking) -> Ready:
    """Pins and looks at everything that an order names; no weights are fetched.

    Raises ``PlanRefused``, ``RequestInvalid``, ``PlanTimeout`` and ``HubError``.
    """
    try:
        sets = pin_sets(order.evaluation_sets, asking)
        return naming(PLANS[order.kind](order, asking), sets)
    except PlanTimeout:
        raise PlanTimeout(asking.deadline_seconds or 0.0) from None


def naming(ready: R, sets: Sequence[EvalSet]) -> R:
    """The plan, with the evaluation sets in its summary; who scores reads them from there."""
    return ready.saying({"sets": [each.model_dump(mode="json") for each in sets]}) if sets else ready


def sets_of(order: JobOrder, plan: Mapping[str, Any] | None) -> tuple[EvalSet, ...]:
    """The evaluation sets of an order, pinned as far as its plan has them."""
    pinned = {each["name"]: EvalSet.model_validate(each) for each in (plan or {}).get("sets", ())}
    return tuple(pinned.get(each.name, each) for each in order.evaluation_sets)


def pin_sets(sets: Sequence[EvalSet], asking: Asking) -> tuple[EvalSet, ...]:
    """The sets with every Hub dataset at its commit. Raises ``RequestInvalid`` where a file is not there, or
    a set is called like the check of a result.
    """
    found = []
    for place, each in enumerate(sets):
        if each.name == CHECK:
            told = f"{CHECK!r} is what the check of a result is called; name the set otherwise"
            raise RequestInvalid(told, f"/evaluate/sets/{place}/name")
        data = each.data
        if data is None or data.hub is None or data.file is None:
            found.append(each)
            continue
        pointer = f"/evaluate/sets/{place}/data"
        repo, revision = hub_place(data.hub, pointer)
        snapshot = asking.planner.pin_dataset(repo, revision, asking.token, asking.tenant, asking.left)
        try:
            snapshot.file(data.file)
        except HubFileMissing as error:
            raise RequestInvalid(str(error), f"{pointer}/file") from None
        pinned = data.model_copy(update={"hub": f"{repo}@{snapshot.sha}"})
        found.append(each.model_copy(update={"data": pinned}))
    return tuple(found)


def misfits(sets: Iterable[EvalSet], model: str, config: Mapping[str, Any]) -> list[Finding]:
    """Sets that a model of this config certainly cannot be scored on; where nothing is known, none."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        return []
    found = []
    for place, each in enumerate(sets):
        if each.kind in (*LIKELIHOOD, "lm_eval") and name.endswith(NOT_CAUSAL):
            lack = "a causal language-model head"
        elif each.kind == "classification" and not name.endswith(CLASSIFIER):
            lack = f"a classification head for texts (…{CLASSIFIER})"
        elif each.kind in EMBEDDING and name.endswith("ForImageClassification"):
            lack = "hidden states of texts"
        else:
            continue
        message = f"{model} is a {name}, which lacks {lack}; a {each.kind} set cannot be scored on it."
        found.append(
            Finding("error", "model_does_not_fit_set", message, f"/evaluate/sets/{place}/kind", model)
        )
    return found


def require_fit(sets: Sequence[EvalSet], planned: Planned) -> None:
    """Raises ``RequestInvalid`` if a result like the merge's reference cannot be scored on a set."""
    index = planned.plan.models[planned.plan.reference]
    bad = misfits(sets, index.label, index.config)
    for place, each in enumerate(sets):
        if each.kind == "zero_shot" and each.settings.get("head") == "base" and planned.recipe.base is None:
            pointer = f"/evaluate/sets/{place}/settings/head"
            raise RequestInvalid("The recipe has no base that could make the head of this set.", pointer)
    if bad:
        raise RequestInvalid(bad[0].message, bad[0].pointer or "")


def _plan_merge(order: JobOrder, asking: Asking) -> Ready:
    assert isinstance(order, JobRequest)
    whole = evaluating.reads_whole(order.evaluate, order.recipe)
    planned = _look_at_merge(order.recipe, order.evaluation_sets, asking, whole)
    return evaluating.told(planned, order.evaluate, asking.scratch_free)


def _look_at_merge(recipe: Recipe, sets: Sequence[EvalSet], asking: Asking, whole: bool) -> Planned:
    who = (asking.token, asking.tenant, asking.left)
    free = asking.scratch_free
    planned = asking.planner.plan(recipe, *who, notes=asking.notes, scratch_free=free, whole=whole)
    require_fit(sets, planned)
    return planned


def _plan_materialise(order: JobOrder, asking: Asking) -> Ready:
    assert isinstance(order, MaterialiseRequest)
    recipe = recipe_of_member(order, asking)
    return _plan_merge(JobRequest(recipe=recipe, evaluate=order.evaluate), asking)


def recipe_of_member(order: MaterialiseRequest, asking: Asking) -> Recipe:
    """The merge that gives the member, with the bundle pinned. Raises ``PlanRefused``, ``HubError``."""
    bundle, index = asking.planner.look_at_bundle(order.bundle, asking.token, asking.tenant, asking.left)
    name, inside = bundle.pinned_name, _separator(bundle)
    try:
        return materialise_recipe(
            index, name, order.wanted, base=order.base, dtype=order.dtype, inside=inside
        )
    except FileRefused as error:
        at = "/base" if isinstance(error, BundleBaseChanged) else "/member" if order.member else "/members"
        raise PlanRefused((Finding("error", error.code, str(error), at),)) from None


def _separator(bundle: PinnedInput) -> str:
    """What stands between the name of a bundle and that of a folder in it."""
    name = bundle.pinned_name
    whole = bundle.snapshot is not None or JOB_NAME.fullmatch(name) is not None
    return ":" if whole and ":" not in name else "/"


def _plan_router(order: JobOrder, asking: Asking) -> Ready:
    """Examples are told apart by what the base holds of them, so that it alone is read; without examples, one
    weight of it and of every member is.
    """
    assert isinstance(order, RouterRequest)
    bundle, index = asking.planner.look_at_bundle(order.bundle, asking.token, asking.tenant, asking.left)
    try:
        for each in order.examples or ():
            index.check_member(each.member)
        base = base_of(index, bundle.pinned_name, order.base, _separator(bundle))
    except FileRefused as error:
        at = "/base" if isinstance(error, BundleBaseChanged) else "/examples"
        raise PlanRefused((Finding("error", error.code, str(error), at),)) from None
    if order.examples is not None:
        shown = {each.member for each in order.examples}
        if absent := [member for member in index.members if member not in shown]:
            raise RequestInvalid(
                f"there is no example for {', '.join(absent)}; give some for every member", "/examples"
            )
    inputs, models = asking.planner.look(
        [Wish("base", base, "/base")], asking.token, asking.tenant, asking.left
    )
    model = models["base"]
    if index.base.inside is None and model.digest != index.base.structure:
        said = f"{model.label} is not the model that the bundle was made over."
        raise PlanRefused((Finding("error", BundleBaseChanged.code, said, "/base"),))
    subject = {"bundle": bundle.pinned_name, "base": inputs[0].pinned_name, "members": list(index.members)}
    if order.examples is None:
        return _plan_gate(order, asking, (bundle, index), base, subject)
    if not layer_bytes(model):
        said = f"{model.label} has no numbered layers to route by."
        raise PlanRefused((Finding("error", GateUnsupported.code, said, "/base"),))
    peak = FORWARD_BYTES + max(layer_bytes(model).values())
    return _looked_at(inputs, models, "cpu", peak, subject | {"examples": len(order.examples)})


def _plan_gate(
    order: RouterRequest,
    asking: Asking,
    bundle: tuple[PinnedInput, BundleIndex],
    base: str,
    subject: dict[str, Any],
) -> PlannedModels:
    """Every member is looked at as an adapter over the base; of each, the files with one weight are read."""
    wishes = [Wish("base", base, "/base"), *_members(*bundle, base)]
    inputs, models = asking.planner.look(wishes, asking.token, asking.tenant, asking.left)
    model = models["base"]
    try:
        layer, name = gate_weight(model, order.layer)
    except GateUnsupported as error:
        at = "/base" if order.layer is None else "/layer"
        raise PlanRefused((Finding("error", error.code, str(error), at),)) from None
    read = tuple(each for each in inputs if each.role == "base" or each.role.endswith(ADAPTER))
    peak = GATE_COPIES * model.tensors[name].numel * (1 + len(bundle[1].members))
    files = gate_files(model, {key: each for key, each in models.items() if key != "base"}, name)
    return _looked_at(read, models, "cpu", peak, subject | {"layer": layer}, files)


def _members(bundle: PinnedInput, index: BundleIndex, base: str) -> Iterator[Wish]:
    """Every member's base, and what is added to it."""
    for member in index.members:
        yield Wish(member, base, "/base")
        if index.kind == "twin":
            inside = f"{bundle.pinned_name}{_separator(bundle)}{ADAPTERS}/{member}"
            yield Wish(member + ADAPTER, inside, "/bundle")
        else:
            yield Wish(member + ADAPTER, bundle.pinned_name, "/bundle", member)


def layer_bytes(model: ModelIndex) -> dict[str, int]:
    """What every numbered layer takes in float32, by number."""
    found: dict[str, int] = {}
    for name, info in model.tensors.items():
        if (layer := LAYER.search(name)) is not None:
            found[layer[1]] = found.get(layer[1], 0) + FLOAT_BYTES * prod(info.shape)
    return found


def _plan_score(order: JobOrder, asking: Asking) -> Ready:
    assert isinstance(order, ScoreRequest)
    wishes = [Wish(each.id, each.model, f"/models/{place}") for place, each in enumerate(order.models)]
    inputs, models = asking.planner.look(wishes, asking.token, asking.tenant, asking.left)
    bad = [
        each for key, index in models.items() for each in misfits(order.evaluation_sets, key, index.config)
    ]
    if bad:
        raise PlanRefused(tuple(bad))
    peak = FLOAT_BYTES * max(index.parameters for index in models.values())
    subject = {"models": [{"id": each.role, "model": each.pinned_name} for each in inputs]}
    return _looked_at(inputs, models, order.queue, peak, subject)


def _looked_at(
    inputs: Sequence[PinnedInput],
    models: Mapping[str, ModelIndex],
    queue: str,
    peak: int,
    subject: dict[str, Any],
    files: Mapping[str, Set[str]] | None = None,
) -> PlannedModels:
    """The plan of a job that reads models and makes none; ``peak`` is the memory that it takes. Of every
    model all weights are read, or these files.
    """
    sized = tuple(replace(each, size_bytes=_size(each.role, models, files)) for each in inputs)
    findings = tuple(remarks(sized))
    fetched = download_bytes(sized)
    summary = {
        "models": {
            each.role: {"parameters": models[each.role].parameters, "bytes": models[each.role].bytes}
            for each in sized
            if each.role in models
        },
        "estimate": {
            "download_bytes": fetched,
            "disk_bytes": fetched,
            "peak_memory_bytes": peak,
            "output_bytes": 0,
        },
        "inputs": [each.row() for each in sized],
        "findings": [each.as_dict() for each in findings],
        "queue": queue,
    }
    return PlannedModels(summary, sized, queue, findings, subject, models)


def _size(role: str, models: Mapping[str, ModelIndex], files: Mapping[str, Set[str]] | None) -> int:
    """Bytes that are read of a model, or of an adapter."""
    index = models[role.removesuffix(ADAPTER)]
    if files is None:
        return index.bytes
    sizes = sizes_of(index, role)
    return sum(sizes[file] for file in files[role.removesuffix(ADAPTER)])


def begun(order: SearchRequest) -> Recipe:
    """The recipe at the point where a search begins, with everything that may be left out. Raises
    ``PlanRefused`` or ``RecipeInvalid`` where the ends of its space are wrong, or the recipe is.
    """
    space, document = order.search.spaces, order.recipe.model_dump(mode="json")
    recipe_from(document)  # what its fields say of each other, which reading the order left open
    own = {each.pointer for each in check_recipe(order.recipe)}
    for point in space.samples:
        corner = Recipe.model_validate(space.place(document, full(space, point)))
        bad = [each for each in check_recipe(corner) if each.severity == "error"]
        if bad:
            raise PlanRefused(
                tuple(e if e.pointer in own else replace(e, pointer="/search/space") for e in bad)
            )
    return Recipe.model_validate(space.place(document, full(space, space.first)))


def _plan_search(order: JobOrder, asking: Asking) -> Ready:
    """A merge at the point where the search begins."""
    assert isinstance(order, SearchRequest)
    planned = _look_at_merge(begun(order), order.evaluation_sets, asking, whole=True)
    return candidates.told(planned, order, asking.scratch_free)


PLANS: dict[str, Callable[[JobOrder, Asking], Ready]] = {
    "merge": _plan_merge,
    "materialise": _plan_materialise,
    "router": _plan_router,
    "score": _plan_score,
    "search": _plan_search,
}
