"""What the forms of all kinds of jobs have in common: the order is placed, or told why it cannot be."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastapi import Response

from api import intake
from api.dashboard.views import found
from api.dashboard.visit import Visit, see
from api.errors import Problem, to_problem
from hub.errors import HubError
from jobs import credentials
from jobs.errors import JobError
from merge.errors import MergeError

KNOWN = (Problem, JobError, HubError, MergeError)
"""What is wrong with an order, and not with the service."""


def placed(visit: Visit, body: Mapping[str, Any], refused: Callable[[Problem], Response]) -> Response:
    """The way to the page of the job that was accepted, or what ``refused`` shows of the problem."""
    try:
        accepted = intake.accept(visit.desk, visit.caller, intake.order_of(dict(body)))
    except KNOWN as error:
        return refused(to_problem(error))
    return see(f"/jobs/{accepted.job_id}")


def wrong_in(errors: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is wrong with an order, as findings of a page."""
    return found({"severity": "error", **each, "message": each["detail"]} for each in errors)


def said_of(problem: Problem) -> str:
    """A sentence on a problem that names no part of the order; else nothing."""
    return "" if problem.errors else str(problem.detail)


def tokens_of(visit: Visit) -> list[tuple[str, str]]:
    """Id and name of each Hub token that may be chosen."""
    with visit.desk.begin() as session:
        return [
            (each.id, each.name) for each in credentials.list_credentials(session, visit.caller.tenant_id)
        ]
