"""How an order of each kind is planned.

A new kind of job is a class in ``jobs/request.py``, a planner here, and a story in ``worker/run_job.py``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

from hub.errors import FileMissing as HubFileMissing
from jobs.calibration import hub_place
from jobs.errors import RequestInvalid
from jobs.pinned import PinnedInput
from jobs.places import JOB_NAME
from jobs.planning import Planned, Planner, download_bytes
from jobs.remarks import remarks
from jobs.request import (
    EvalSet,
    JobOrder,
    JobRequest,
    MaterialiseRequest,
    ScoreRequest,
    SearchRequest,
    full,
)
from jobs.wishes import Wish
from merge.bundle.recipe import materialise_recipe
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding, PlanRefused
from merge.file_errors import BundleBaseChanged, FileRefused
from merge.plan import check_recipe
from merge.recipe import Recipe
from scoring.settings import EMBEDDING, LIKELIHOOD

FLOAT_BYTES = 4
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
    """Who wants a plan, by when, and with how much room on the disk."""

    planner: Planner
    token: str | None
    tenant: str
    deadline_seconds: float | None = None
    notes: tuple[str, ...] = ()
    scratch_free: int | None = None


def plan_order(order: JobOrder, asking: Asking) -> Ready:
    """Pins and looks at everything that an order names; no weights are fetched.

    Raises ``PlanRefused``, ``RequestInvalid``, ``PlanTimeout`` and ``HubError``.
    """
    sets = pin_sets(order.evaluation_sets, asking)
    return naming(PLANS[order.kind](order, asking), sets)


def naming(ready: R, sets: Sequence[EvalSet]) -> R:
    """The plan, with the evaluation sets in its summary; who scores reads them from there."""
    return ready.saying({"sets": [each.model_dump(mode="json") for each in sets]}) if sets else ready


def sets_of(order: JobOrder, plan: Mapping[str, Any] | None) -> tuple[EvalSet, ...]:
    """The evaluation sets of an order, pinned as far as its plan has them."""
    pinned = {each["name"]: EvalSet.model_validate(each) for each in (plan or {}).get("sets", ())}
    return tuple(pinned.get(each.name, each) for each in order.evaluation_sets)


def pin_sets(sets: Sequence[EvalSet], asking: Asking) -> tuple[EvalSet, ...]:
    """The sets with every Hub dataset at its commit. Raises ``RequestInvalid`` where a file is not there."""
    found = []
    for place, each in enumerate(sets):
        data = each.data
        if data is None or data.hub is None or data.file is None:
            found.append(each)
            continue
        pointer = f"/evaluate/sets/{place}/data"
        repo, revision = hub_place(data.hub, pointer)
        snapshot = asking.planner.pin_dataset(
            repo, revision, asking.token, asking.tenant, asking.deadline_seconds
        )
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
    planned = asking.planner.plan(
        order.recipe,
        asking.token,
        asking.tenant,
        asking.deadline_seconds,
        notes=asking.notes,
        scratch_free=asking.scratch_free,
        whole=order.evaluate.scores_parents,
    )
    require_fit(order.evaluation_sets, planned)
    return planned


def _plan_materialise(order: JobOrder, asking: Asking) -> Ready:
    assert isinstance(order, MaterialiseRequest)
    recipe = recipe_of_member(order, asking)
    return _plan_merge(JobRequest(recipe=recipe, evaluate=order.evaluate), asking)


def recipe_of_member(order: MaterialiseRequest, asking: Asking) -> Recipe:
    """The merge that gives the member, with the bundle pinned. Raises ``PlanRefused``, ``HubError``."""
    bundle, index = asking.planner.look_at_bundle(
        order.bundle, asking.token, asking.tenant, asking.deadline_seconds
    )
    name = bundle.pinned_name
    whole = bundle.snapshot is not None or JOB_NAME.fullmatch(name) is not None
    inside = ":" if whole and ":" not in name else "/"
    try:
        return materialise_recipe(
            index, name, order.wanted, base=order.base, dtype=order.dtype, inside=inside
        )
    except FileRefused as error:
        at = "/base" if isinstance(error, BundleBaseChanged) else "/member" if order.member else "/members"
        raise PlanRefused((Finding("error", error.code, str(error), at),)) from None


def _plan_score(order: JobOrder, asking: Asking) -> Ready:
    assert isinstance(order, ScoreRequest)
    wishes = [Wish(each.id, each.model, f"/models/{place}") for place, each in enumerate(order.models)]
    inputs, models = asking.planner.look(wishes, asking.token, asking.tenant, asking.deadline_seconds)
    inputs = tuple(replace(each, size_bytes=models[each.role].bytes) for each in inputs)
    bad = [
        each for key, index in models.items() for each in misfits(order.evaluation_sets, key, index.config)
    ]
    if bad:
        raise PlanRefused(tuple(bad))
    pinned = ((each.name, each.role, each.snapshot) for each in inputs if each.snapshot is not None)
    findings = tuple(remarks(pinned))
    fetched = download_bytes(inputs)
    summary = {
        "models": {
            key: {"parameters": index.parameters, "bytes": index.bytes} for key, index in models.items()
        },
        "estimate": {
            "download_bytes": fetched,
            "disk_bytes": fetched,
            "peak_memory_bytes": FLOAT_BYTES * max(index.parameters for index in models.values()),
            "output_bytes": 0,
        },
        "inputs": [each.row() for each in inputs],
        "findings": [each.as_dict() for each in findings],
        "queue": order.queue,
    }
    subject = {"models": [{"id": each.role, "model": each.pinned_name} for each in inputs]}
    return PlannedModels(summary, inputs, order.queue, findings, subject, models)


def _plan_search(order: JobOrder, asking: Asking) -> Ready:
    """A merge at the point where the search begins, with everything that may be left out."""
    assert isinstance(order, SearchRequest)
    space, document = order.search.spaces, order.recipe.model_dump(mode="json")
    for point in space.corners:
        corner = Recipe.model_validate(space.place(document, full(space, point)))
        bad = [each for each in check_recipe(corner) if each.severity == "error"]
        if bad:
            raise PlanRefused(tuple(bad))
    recipe = Recipe.model_validate(space.place(document, full(space, space.first)))
    planned = _plan_merge(JobRequest(recipe=recipe, evaluate=order.evaluate), asking)
    assert isinstance(planned, Planned)
    reason = planned.plan.written_because
    if reason is not None:
        raise RequestInvalid(f"its candidates are merged in memory, and {reason}", "/recipe")
    needed = FLOAT_BYTES * planned.plan.models[planned.plan.reference].parameters
    estimate = {**planned.summary["estimate"], "output_bytes": 0}
    estimate["peak_memory_bytes"] = estimate["peak_memory_bytes"] + needed
    asked = order.search
    told = {"method": asked.method, "numbers": space.width, "evaluations": asked.budget.evaluations}
    return planned.saying({"estimate": estimate, "search": told})


PLANS: dict[str, Callable[[JobOrder, Asking], Ready]] = {
    "merge": _plan_merge,
    "materialise": _plan_materialise,
    "score": _plan_score,
    "search": _plan_search,
}
