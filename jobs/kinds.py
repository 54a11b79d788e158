"""How an order of each kind is planned.

A new kind of job is a class in ``jobs/request.py``, a planner here, and a story in ``worker/run_job.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from hub.errors import FileMissing as HubFileMissing
from jobs import candidates, evaluating
from jobs.asking import Asking, Ready, looked_at
from jobs.bundles import plan_router, recipe_of_member
from jobs.calibration import hub_place
from jobs.errors import PlanTimeout, RequestInvalid
from jobs.evaluating import FLOAT_BYTES
from jobs.fitting import misfits
from jobs.planning import Planned
from jobs.request import (
    JobOrder,
    JobRequest,
    MaterialiseRequest,
    ScoreRequest,
    SearchRequest,
    full,
)
from jobs.sets import CHECK, EvalSet
from jobs.wishes import Wish
from merge.errors import PlanRefused
from merge.plan import check_recipe
from merge.recipe.recipe import Recipe, recipe_from

R = TypeVar("R", bound=Ready)


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


def _plan_score(order: JobOrder, asking: Asking) -> Ready:
    assert isinstance(order, ScoreRequest)
    wishes = [Wish(each.id, each.model, f"/models/{place}") for place, each in enumerate(order.models)]
    inputs, models = asking.look(wishes)
    bad = [
        each for key, index in models.items() for each in misfits(order.evaluation_sets, key, index.config)
    ]
    if bad:
        raise PlanRefused(tuple(bad))
    peak = FLOAT_BYTES * max(index.parameters for index in models.values())
    subject = {"models": [{"id": each.role, "model": each.pinned_name} for each in inputs]}
    return looked_at(inputs, models, order.queue, peak, subject)


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
    "router": plan_router,
    "score": _plan_score,
    "search": _plan_search,
}
