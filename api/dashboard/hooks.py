"""The pages of webhook endpoints and of what was delivered to them."""

from collections.abc import Callable, Sequence

from fastapi import APIRouter, Response

from api.dashboard.render import page
from api.dashboard.visit import (
    Author,
    CursorAsked,
    Form,
    PageRoute,
    Visit,
    Visitor,
    after_of,
    older_than,
    see,
)
from api.deps import Id
from api.errors import to_problem
from db.models.webhook import WebhookEndpoint
from db.session import Session
from jobs import announcements, webhooks
from jobs.errors import IllegalState, JobError, NotFound

ROWS = 25

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/webhooks")
def endpoint_list(visit: Visitor) -> Response:
    """The tenant's standing webhook endpoints."""
    return _endpoints(visit)


@router.post("/webhooks")
def add_endpoint(visit: Author, form: Form) -> Response:
    """Adds an endpoint and shows its signing secret this once."""
    visit.caller.require("webhooks")
    url = str(form.get("url") or "").strip()
    events = [each for each in form.getlist("events") if isinstance(each, str)]
    try:
        with visit.desk.begin() as session:
            _, secret = webhooks.create_endpoint(
                session,
                visit.desk.keyring,
                visit.caller.tenant_id,
                url,
                events,
                allow_http=visit.desk.settings.webhook_allow_http,
            )
    except JobError as error:
        return _endpoints(visit, events, wrong=str(error), url=url, status=to_problem(error).status_code)
    return _endpoints(visit, secret=secret)


@router.get("/webhooks/{endpoint_id}")
def endpoint(visit: Visitor, endpoint_id: Id, cursor: CursorAsked = "") -> Response:
    """One endpoint: what it hears, what was sent to it and what came of it."""
    return _endpoint(visit, endpoint_id, cursor)


@router.post("/webhooks/{endpoint_id}/rotate-secret")
def rotate_secret(visit: Author, endpoint_id: Id) -> Response:
    """Makes a new signing secret and shows it this once; the old one signs beside it for a day."""
    visit.caller.require("webhooks")
    with visit.desk.begin() as session:
        row = webhooks.get_endpoint(session, visit.caller.tenant_id, endpoint_id)
        secret = webhooks.rotate_secret(session, visit.desk.keyring, row)
    return _endpoint(visit, endpoint_id, secret=secret)


@router.post("/webhooks/{endpoint_id}/test")
def send_test(visit: Author, endpoint_id: Id) -> Response:
    """Sends a message that says nothing but that it is one."""
    return _change(visit, endpoint_id, webhooks.send_test)


@router.post("/webhooks/{endpoint_id}/switch")
def switch(visit: Author, endpoint_id: Id, form: Form) -> Response:
    """Switches an endpoint on or off."""
    on = form.get("enabled") == "yes"
    return _change(
        visit, endpoint_id, lambda session, row: webhooks.update_endpoint(session, row, enabled=on)
    )


@router.post("/webhooks/{endpoint_id}/deliveries/{delivery_id}/redeliver")
def redeliver(visit: Author, endpoint_id: Id, delivery_id: Id) -> Response:
    """Sends a message again, under its old id."""

    def again(session: Session, row: WebhookEndpoint) -> None:
        delivery = webhooks.redeliver(session, visit.caller.tenant_id, delivery_id)
        if delivery.endpoint_id != row.id:
            raise NotFound("webhook delivery", delivery_id)

    return _change(visit, endpoint_id, again)


@router.post("/webhooks/{endpoint_id}/delete")
def remove_endpoint(visit: Author, endpoint_id: Id) -> Response:
    """Removes an endpoint and what still waits for it."""
    visit.caller.require("webhooks")
    with visit.desk.begin() as session:
        row = webhooks.get_endpoint(session, visit.caller.tenant_id, endpoint_id)
        webhooks.delete_endpoint(session, row)
    return see("/webhooks")


def _endpoints(
    visit: Visit,
    chosen: Sequence[str] = announcements.DEFAULT_TYPES,
    *,
    secret: str = "",
    wrong: str = "",
    url: str = "",
    status: int = 200,
) -> Response:
    visit.caller.require("webhooks")
    with visit.desk.begin() as session:
        return page(
            "webhooks.html",
            status,
            here="/webhooks",
            csrf=visit.csrf,
            endpoints=webhooks.list_endpoints(session, visit.caller.tenant_id),
            types=[each for each in announcements.TYPES if each != announcements.ENDPOINT_TEST],
            chosen=chosen,
            secret=secret,
            wrong=wrong,
            url=url,
        )


def _change(visit: Visit, endpoint_id: str, change: Callable[[Session, WebhookEndpoint], object]) -> Response:
    """Changes something about an endpoint and shows its page, with the reason if it could not be done."""
    visit.caller.require("webhooks")
    try:
        with visit.desk.begin() as session:
            change(session, webhooks.get_endpoint(session, visit.caller.tenant_id, endpoint_id))
    except IllegalState as error:
        return _endpoint(visit, endpoint_id, wrong=str(error), status=to_problem(error).status_code)
    return see(f"/webhooks/{endpoint_id}")


def _endpoint(
    visit: Visit, endpoint_id: str, cursor: str = "", *, secret: str = "", wrong: str = "", status: int = 200
) -> Response:
    visit.caller.require("webhooks")
    filters = {"page": "deliveries", "of": endpoint_id}
    with visit.desk.begin() as session:
        row = webhooks.get_endpoint(session, visit.caller.tenant_id, endpoint_id)
        after = after_of(visit, cursor, filters)
        rows = webhooks.deliveries(session, row, limit=ROWS + 1, after=after)
        return page(
            "webhook.html",
            status,
            here="/webhooks",
            csrf=visit.csrf,
            endpoint=row,
            deliveries=rows[:ROWS],
            older=older_than(visit, rows, ROWS, filters),
            secret=secret,
            wrong=wrong,
        )
