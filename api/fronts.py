"""Fronts as callers ask for them: a preference in a query, and the order by which a point is merged."""

from collections.abc import Iterator
from contextlib import contextmanager

from api.deps import Desk, own_job
from api.errors import Problem
from api.intake import Order
from jobs.fronts import Front, front_of, merge_order
from jobs.keys import Caller
from jobs.searching import PointRequest
from search.choice import Among, Chosen
from search.errors import SearchInvalid


def front_for(desk: Desk, caller: Caller, job_id: str) -> Front:
    """The front of a search. Raises a 404 problem and ``IllegalState``."""
    with desk.read() as session:
        return front_of(session, own_job(session, caller, job_id))


def picked(front: Front, preference: str, among: Among = "measured") -> Chosen:
    """The point that suits a preference written as numbers with commas between. Raises a 422 problem."""
    with _named():
        return front.chosen(_numbers(preference), among)


def order_of_place(desk: Desk, caller: Caller, job_id: str, place: int, request: PointRequest) -> Order:
    """The merge of one point of a front. Raises a 404 problem and ``IllegalState``."""
    with desk.read() as session:
        job = own_job(session, caller, job_id)
        return Order(merge_order(job, front_of(session, job), place, request))


def _numbers(text: str) -> list[float]:
    said = []
    for each in text.split(","):
        try:
            said.append(float(each))
        except ValueError:
            raise SearchInvalid(
                f"preference: {each.strip()!r} is no number; write one an objective, such as 2,1",
                "/preference",
            ) from None
    return said


@contextmanager
def _named() -> Iterator[None]:
    """What is wrong with a question becomes a problem that names the parameter."""
    try:
        yield
    except SearchInvalid as error:
        wrong = {"in": "query", "pointer": error.pointer, "code": error.code, "detail": str(error)}
        raise Problem("validation_failed", str(error), errors=[wrong]) from None
