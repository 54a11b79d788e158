"""The front of a finished search: its points, which of them suits a preference, and one as a merge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from db import fronts
from db.models.job import Job
from jobs.errors import IllegalState, NotFound
from jobs.request import JobRequest, SearchRequest
from jobs.searching import PointRequest, as_sent, order_at, searched
from search.choice import Among, Chosen, FrontPoint, choose, names_of, points_of
from search.order import SEVERAL


@dataclass(frozen=True)
class Front:
    """What a search has found: ``points`` in the order of their places, the measured ones first, of which
    there are ``measured_total``; ``recipe`` is what a point is placed in.
    """

    order: SearchRequest
    recipe: Mapping[str, Any]
    points: Sequence[FrontPoint]
    measured_total: int
    hypervolume: Mapping[str, Any] | None

    @property
    def names(self) -> list[str]:
        """The objectives in words."""
        return names_of(each.model_dump() for each in self.order.search.objectives)

    def recipe_at(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The whole recipe of a point."""
        return self.order.search.spaces.place(self.recipe, point)

    def at(self, place: int) -> FrontPoint:
        """The point in a place. Raises ``NotFound``."""
        if not 0 <= place < len(self.points):
            raise NotFound("point of this front", str(place))
        return self.points[place]

    def chosen(self, preference: Sequence[float], among: Among = "measured") -> Chosen:
        """The point that suits a preference, as ``search.preference`` chooses. Raises ``SearchInvalid``."""
        return choose(self.points, preference, self.names, among)


def front_of(session: Session, job: Job) -> Front:
    """The front of a search. Raises ``IllegalState`` where there is none, or none yet."""
    order = searched(job)
    front = front_if_any(session, job)
    if front is not None:
        return front
    if job.result is None:
        raise IllegalState(
            f"The search {job.id} is {job.state} and has no front; what it has tried is at "
            f"/v1/jobs/{job.id}/trials."
        )
    raise IllegalState(
        f"The search {job.id} looked for one best point with {order.search.method} and has no front: fronts "
        f"come of two objectives or more with {', '.join(SEVERAL)}. Its point is result.best."
    )


def front_if_any(session: Session, job: Job) -> Front | None:
    """The front of a search that has ended with one; nothing of other jobs."""
    if job.kind != "search" or job.result is None:
        return None
    order = searched(job)
    body = fronts.of_job(session, job.id) or _told(job, order)
    if not body["measured"]:
        return None
    return Front(order, body["recipe"], points_of(body), body["measured_total"], body["hypervolume"])


def merge_order(job: Job, front: Front, place: int, request: PointRequest) -> JobRequest:
    """The merge of one point, measured or predicted, every model pinned as the search had it. Raises
    ``NotFound``.
    """
    point = front.at(place)
    number = {} if point.number is None else {"trial": str(point.number)}
    told = {"search": job.id, "front": str(place), **number}
    return order_at(job, front.recipe_at(point.point), request, told)


def _told(job: Job, order: SearchRequest) -> dict[str, Any]:
    """The front as the result of an earlier version's search tells it."""
    result = job.result or {}
    front = result.get("front") or []
    return {
        "recipe": as_sent(job.recipe, order),
        "measured": front,
        "measured_total": len(front),
        "predicted": [],
        "hypervolume": result.get("hypervolume"),
    }
