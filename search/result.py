"""What a search found, as plain JSON: the best point, or the front, with everything that was tried."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from search.choice import suited
from search.clouds import spread
from search.drive import Ended, Trial
from search.front import hypervolume, not_dominated
from search.order import SearchOrder
from search.trial import Task

MOST_MEASURED = 256
"""Measured points of a front that are kept beside the job; ``search.json`` has all of them."""


def result_of(order: SearchOrder, recipe: Mapping[str, Any], ended: Ended) -> dict[str, Any]:
    """``best`` is a point with its recipe and scores; with several objectives, ``front`` is what was measured
    and not beaten, ``predicted`` what a model of the scores says, with recipes too, and ``best`` suits the
    preference. ``as_sent`` is the recipe itself: ``best`` is that, too, where it scored higher.

    Scores are as the objectives want them: higher is better, losses negative. Points that were given up
    early, on a part of the examples, are never the best.
    """
    sent = ended.as_sent
    every = [*ended.trials, *([sent] if sent.number == len(ended.trials) else ())]
    scored = [t for t in every if t.told.values is not None]
    # 1, unless the budget ended before anything was scored whole
    whole = max(t.told.share for t in scored if t.number < len(ended.trials))
    full = [t for t in scored if t.told.share == whole]
    front = _front(full) if order.several else []
    best = _best(order, full, front, ended)
    return {
        "method": order.method,
        "version": order.chosen().version,
        "objectives": [each.model_dump() for each in order.objectives],
        "best": _shown(order, recipe, best),
        "as_sent": {"number": sent.number, "values": _listed(sent)},
        "front": [_shown(order, recipe, each) for each in front],
        "predicted": [
            {"point": p.point, "values": list(p.values), "recipe": order.spaces.place(recipe, p.point)}
            for p in ended.found.front
        ],
        "hypervolume": _hypervolume(order, full, front),
        "trials": [{"number": t.number, "point": t.point, **t.told.as_dict()} for t in every],
        "notes": dict(ended.found.notes),
        "ended": ended.why,
        "evaluations": ended.evaluations,
        "failed": sum(t.told.values is None for t in ended.trials),
        "reused": sum(t.told.reused for t in every),
    }


def kept_front(found: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The front of a result without its recipes, in a size that a row can have; ``recipe`` is what its points
    are placed in. Of too many measured points those that lie far from each other stay, and the best.
    Nothing for a result that has neither a front nor predictions.
    """
    front = found["front"] or ([found["best"]] if found["predicted"] else [])
    if not front:
        return None
    kept = list(range(len(front)))
    if len(front) > MOST_MEASURED:
        far = spread(np.array([each["values"] for each in front]), MOST_MEASURED)
        best = [each["number"] for each in front].index(found["best"]["number"])
        kept = sorted(far if best in far else [*far[:-1], best])
    return {
        "recipe": dict(recipe),
        "measured": [{key: front[at][key] for key in ("number", "point", "values")} for at in kept],
        "measured_total": len(front),
        "predicted": [{"point": each["point"], "values": each["values"]} for each in found["predicted"]],
        "hypervolume": found["hypervolume"],
    }


def _values(trials: list[Trial]) -> Any:
    return np.array([t.told.values for t in trials], dtype=float)


def _front(full: list[Trial]) -> list[Trial]:
    return [full[at] for at in not_dominated(_values(full))]


def _best(order: SearchOrder, full: list[Trial], front: list[Trial], ended: Ended) -> Trial:
    if front:
        say = order.preference or tuple(each.weight for each in order.objectives)
        return front[suited(_values(front), say)]
    task = Task(1, tuple(each.weight for each in order.objectives))
    ranked = sorted(full, key=lambda trial: -task.value(trial.told))
    chosen = next((trial for trial in full if trial.point == ended.found.point), ranked[0])
    sent = next((trial for trial in full if trial.number == ended.as_sent.number), chosen)
    return max(chosen, sent, key=lambda trial: task.value(trial.told))


def _hypervolume(order: SearchOrder, full: list[Trial], front: list[Trial]) -> dict[str, Any] | None:
    """Volume over the reference, or over the worst that was measured of each objective; none where it is
    beyond every number, as that of perplexities may be.
    """
    if not front:
        return None
    reference = list(order.reference or _values(full).min(axis=0).tolist())
    with np.errstate(over="ignore", invalid="ignore"):
        value = hypervolume(_values(front), reference)
    return {"value": value, "reference": reference} if np.isfinite(value) else None


def _listed(trial: Trial) -> list[float] | None:
    return None if trial.told.values is None else list(trial.told.values)


def _shown(order: SearchOrder, recipe: Mapping[str, Any], trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "point": trial.point,
        "values": _listed(trial),
        "recipe": order.spaces.place(recipe, trial.point),
    }
