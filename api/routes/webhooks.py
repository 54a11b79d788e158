"""Webhook endpoints of the caller's tenant, and what was delivered to them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from api.bodies import StrictRoute
from api.deps import JSON, Asked, Id, InDesk, WebhookKeeper, own_job
from api.paging import page, start
from api.schemas.common import PageOut, problems
from api.schemas.webhooks import (
    DeliveryOut,
    EndpointCreate,
    EndpointCreatedOut,
    EndpointOut,
    EndpointUpdate,
    SecretOut,
)
from jobs import webhooks
from jobs.errors import NotFound

router = APIRouter(
    prefix="/v1/webhook-endpoints",
    tags=["webhook-endpoints"],
    route_class=StrictRoute,
    responses=problems(),
    dependencies=[JSON],
)


@router.get("", responses=problems(404))
def list_endpoints(
    desk: InDesk,
    caller: WebhookKeeper,
    job_id: Annotated[
        str | None, Query(max_length=64, description="The webhook that was ordered with this job instead")
    ] = None,
) -> PageOut[EndpointOut]:
    """The tenant's endpoints, newest first."""
    with desk.read() as session:
        job = own_job(session, caller, job_id) if job_id is not None else None
        rows = webhooks.list_endpoints(session, caller.tenant_id, job)
        return PageOut(data=[EndpointOut.model_validate(row) for row in rows])


@router.post("", status_code=201, responses=problems(413, 415))
def create_endpoint(
    desk: InDesk, caller: WebhookKeeper, body: EndpointCreate, response: Response
) -> EndpointCreatedOut:
    """A new endpoint; its secret is shown this once."""
    with desk.begin() as session:
        row, secret = webhooks.create_endpoint(
            session,
            desk.keyring,
            caller.tenant_id,
            body.url,
            body.events,
            description=body.description,
            secret=body.secret.get_secret_value() if body.secret else None,
            allow_http=desk.settings.webhook_allow_http,
        )
        session.refresh(row)
    response.headers["Location"] = f"/v1/webhook-endpoints/{row.id}"
    return EndpointCreatedOut(**EndpointOut.model_validate(row).model_dump(), secret=secret)


@router.get("/{endpoint_id}", responses=problems(404))
def get_endpoint(desk: InDesk, caller: WebhookKeeper, endpoint_id: Id) -> EndpointOut:
    """One endpoint."""
    with desk.read() as session:
        return EndpointOut.model_validate(webhooks.get_endpoint(session, caller.tenant_id, endpoint_id))


@router.patch("/{endpoint_id}", responses=problems(404, 413, 415))
def update_endpoint(
    desk: InDesk, caller: WebhookKeeper, endpoint_id: Id, body: EndpointUpdate
) -> EndpointOut:
    """Changes the fields that are given; ``enabled`` switches it on and off."""
    with desk.begin() as session:
        row = webhooks.get_endpoint(session, caller.tenant_id, endpoint_id)
        row = webhooks.update_endpoint(
            session, row, **body.model_dump(), allow_http=desk.settings.webhook_allow_http
        )
        return EndpointOut.model_validate(row)


@router.delete("/{endpoint_id}", status_code=204, responses=problems(404))
def delete_endpoint(desk: InDesk, caller: WebhookKeeper, endpoint_id: Id) -> None:
    """Removes an endpoint and the record of its deliveries."""
    with desk.begin() as session:
        webhooks.delete_endpoint(session, webhooks.get_endpoint(session, caller.tenant_id, endpoint_id))


@router.post("/{endpoint_id}/rotate-secret", responses=problems(404))
def rotate_secret(desk: InDesk, caller: WebhookKeeper, endpoint_id: Id) -> SecretOut:
    """A new secret, shown this once. The old one signs beside it for a day."""
    with desk.begin() as session:
        row = webhooks.get_endpoint(session, caller.tenant_id, endpoint_id)
        secret = webhooks.rotate_secret(session, desk.keyring, row)
        return SecretOut(secret=secret, old_secret_until=row.old_secret_until)


@router.post("/{endpoint_id}/test", status_code=202, responses=problems(404, 409))
def test_endpoint(desk: InDesk, caller: WebhookKeeper, endpoint_id: Id) -> DeliveryOut:
    """Sends an ``endpoint.test`` message."""
    with desk.begin() as session:
        row = webhooks.get_endpoint(session, caller.tenant_id, endpoint_id)
        delivery = webhooks.send_test(session, row)
        session.refresh(delivery)
        return DeliveryOut.model_validate(delivery)


@router.get("/{endpoint_id}/deliveries", response_model=PageOut[DeliveryOut], responses=problems(404))
def list_deliveries(
    desk: InDesk,
    caller: WebhookKeeper,
    endpoint_id: Id,
    asked: Asked,
    request: Request,
    state: Annotated[Literal["pending", "delivered", "dead"] | None, Query()] = None,
) -> Response:
    """What was sent to an endpoint, newest first."""
    filters = {"of": endpoint_id, "state": state}
    with desk.read() as session:
        row = webhooks.get_endpoint(session, caller.tenant_id, endpoint_id)
        after = start(desk, asked, filters)
        rows = webhooks.deliveries(session, row, limit=asked.limit + 1, after=after, state=state)
    return page(desk, request, asked, filters, rows, DeliveryOut.model_validate)


@router.post(
    "/{endpoint_id}/deliveries/{delivery_id}/redeliver", status_code=202, responses=problems(404, 409)
)
def redeliver(desk: InDesk, caller: WebhookKeeper, endpoint_id: Id, delivery_id: Id) -> DeliveryOut:
    """Sends a message again, under its old id."""
    with desk.begin() as session:
        webhooks.get_endpoint(session, caller.tenant_id, endpoint_id)
        row = webhooks.redeliver(session, caller.tenant_id, delivery_id)
        if row.endpoint_id != endpoint_id:
            raise NotFound("webhook delivery", delivery_id)
        return DeliveryOut.model_validate(row)
