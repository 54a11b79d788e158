"""Rules of webhook endpoints and deliveries; a sender asks for each try here and tells how it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from db import webhooks
from db.models.base import new_id
from db.models.job import Job
from db.models.webhook import WebhookDelivery, WebhookEndpoint
from jobs import announcements, signing, tally
from jobs.errors import CredentialUnreadable, EndpointUrlInvalid, IllegalState, NotFound, RequestInvalid
from jobs.keyring import Keyring, Sealed

ROTATION_SECONDS = 24 * 3600.0
GIVE_UP_SECONDS = 5 * 24 * 3600.0
JITTER = 0.1
SLOW_DOWN = frozenset({429, 502, 503, 504})
SLOW_DOWN_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 24 * 3600.0
GONE = 410
LONGEST_URL = 2048
LOWEST_FREE_PORT = 1024
DEFAULT_PORTS = {"https": 443, "http": 80}
LONGEST_ERROR = 500


@dataclass(frozen=True)
class DueDelivery:
    """One try to be made now by its owner. ``secrets`` are the live ones, newest first.

    ``lag_seconds`` is how long the message had waited when the try was taken.
    """

    id: str
    attempt: int
    owner: str
    endpoint_id: str
    url: str
    message_id: str
    type: str
    body: bytes
    secrets: tuple[str, ...] = field(repr=False)
    receiver: str
    lag_seconds: float = 0.0


def create_endpoint(
    session: Session,
    keyring: Keyring,
    tenant_id: str,
    url: str,
    events: Sequence[str] | None = None,
    *,
    description: str | None = None,
    secret: str | None = None,
    job_id: str | None = None,
    allow_http: bool = False,
) -> tuple[WebhookEndpoint, str]:
    """A new endpoint and its secret, shown this once. Default events: all but progress.

    Raises ``EndpointUrlInvalid``, or ``RequestInvalid`` for an unknown event or an unfit secret. Where the
    host leads is checked at every delivery, not here.
    """
    types = check_endpoint(url, events, secret, allow_http=allow_http)
    row_id = new_id("we")
    clear = secret or signing.new_secret()
    sealed = keyring.seal(clear, tenant_id, row_id)
    row = WebhookEndpoint(
        id=row_id,
        tenant_id=tenant_id,
        job_id=job_id,
        url=url,
        events=types,
        description=description,
        key_id=sealed.key_id,
        secret=sealed.ciphertext,
    )
    session.add(row)
    session.flush()
    return row, clear


def get_endpoint(session: Session, tenant_id: str, endpoint_id: str) -> WebhookEndpoint:
    """One endpoint of the tenant. Raises ``NotFound``."""
    row = webhooks.endpoint(session, tenant_id, endpoint_id)
    if row is None:
        raise NotFound("webhook endpoint", endpoint_id)
    return row


def list_endpoints(session: Session, tenant_id: str, job: Job | None = None) -> Sequence[WebhookEndpoint]:
    """The tenant's standing endpoints, newest first, or those of a job and its retries alone."""
    return webhooks.endpoints(session, tenant_id, job.root_id if job else None)


def update_endpoint(
    session: Session,
    row: WebhookEndpoint,
    *,
    url: str | None = None,
    events: Sequence[str] | None = None,
    description: str | None = None,
    enabled: bool | None = None,
    allow_http: bool = False,
) -> WebhookEndpoint:
    """Changes what is given; an empty description takes it away. Enabling clears the record of failures;
    disabling drops what waits. Raises ``NotFound``.
    """
    _hold(session, row)
    if url is not None:
        check_url(url, allow_http=allow_http)
        row.url = url
        webhooks.readdress(session, row)
    if events is not None:
        row.events = check_events(events)
    if description is not None:
        row.description = description or None
    session.flush()
    if enabled is True and row.disabled_at is not None:
        webhooks.enable(session, row)
    if enabled is False and row.disabled_at is None:
        webhooks.disable(session, row.id, "disabled by its owner")
    session.refresh(row)
    return row


def delete_endpoint(session: Session, row: WebhookEndpoint) -> None:
    """Removes an endpoint and its deliveries."""
    webhooks.remove(session, row)


def rotate_secret(session: Session, keyring: Keyring, row: WebhookEndpoint) -> str:
    """A new secret, shown this once; messages carry signatures of both for 24 hours. Raises ``NotFound``."""
    _hold(session, row)
    clear = signing.new_secret()
    sealed = keyring.seal(clear, row.tenant_id, row.id)
    webhooks.keep_old_secret(session, row, ROTATION_SECONDS)
    row.key_id, row.secret = sealed.key_id, sealed.ciphertext
    session.flush()
    session.refresh(row)
    return clear


def send_test(session: Session, row: WebhookEndpoint) -> WebhookDelivery:
    """Queues an ``endpoint.test`` message. Raises ``NotFound``, or ``IllegalState`` when the endpoint is
    disabled.
    """
    _hold(session, row)
    if row.disabled_at is not None:
        raise IllegalState(f"The endpoint {row.id} is disabled ({row.disabled_reason}); enable it first.")
    body = announcements.message(announcements.ENDPOINT_TEST, datetime.now(UTC), {"endpoint_id": row.id})
    return webhooks.add_delivery(
        session, row, type_=announcements.ENDPOINT_TEST, message_id=new_id("msg"), body=body
    )


def _hold(session: Session, row: WebhookEndpoint) -> None:
    """Holds an endpoint that is to change, as it is now: since it was read somebody may have changed it, or
    removed it, which is a ``NotFound`` like any other.
    """
    if not webhooks.lock_endpoint(session, row.id):
        raise NotFound("webhook endpoint", row.id)
    session.refresh(row)


def deliveries(
    session: Session,
    row: WebhookEndpoint,
    *,
    limit: int = 20,
    after: tuple[datetime, str] | None = None,
    state: str | None = None,
) -> Sequence[WebhookDelivery]:
    """Deliveries to the endpoint, newest first, keyset by (created_at, id)."""
    return webhooks.deliveries(session, row.id, limit=limit, after=after, state=state)


def redeliver(session: Session, tenant_id: str, delivery_id: str) -> WebhookDelivery:
    """Sends a message again, now, under its old id. Raises ``NotFound``, or ``IllegalState`` while it is
    sent.
    """
    row = webhooks.delivery(session, tenant_id, delivery_id)
    if row is None:
        raise NotFound("webhook delivery", delivery_id)
    endpoint = get_endpoint(session, tenant_id, row.endpoint_id)
    _hold(session, endpoint)
    row = webhooks.delivery(session, tenant_id, delivery_id, held=True)
    if row is None:
        raise NotFound("webhook delivery", delivery_id)
    if row.lease_owner is not None:
        raise IllegalState(f"The delivery {row.id} is being sent at this moment.")
    if endpoint.disabled_at is not None:
        raise IllegalState(f"The endpoint {endpoint.id} is disabled; enable it first.")
    webhooks.repeat(session, row, endpoint)
    return row


def claim_due(
    session: Session,
    keyring: Keyring,
    owner: str,
    *,
    limit: int = 20,
    lease_seconds: float = 60.0,
    each: int = 1000,
    held: Mapping[str, int] | None = None,
) -> list[DueDelivery]:
    """Tries to be made now, each given to one owner only; commit before sending. The owner gets no more than
    ``each`` for one receiver, with those that it has ``held`` since before.

    An endpoint whose secret cannot be opened is disabled with the reason, and holds up nobody else's tries.
    What was announced to an endpoint in the moment in which it was disabled is dead, like all that waited.
    """
    due = []
    taken = webhooks.claim_due(session, owner, limit, lease_seconds, each, held or {})
    for row, endpoint, old_holds in taken:
        if endpoint.disabled_at is not None:
            webhooks.disable(session, endpoint.id, endpoint.disabled_reason or "")
            continue
        try:
            secrets = _open_secrets(keyring, endpoint, old_holds)
        except CredentialUnreadable as error:
            webhooks.disable(session, endpoint.id, str(error))
            continue
        due.append(_due(row, endpoint, owner, secrets))
    return due


def _due(row: WebhookDelivery, endpoint: WebhookEndpoint, owner: str, secrets: Sequence[str]) -> DueDelivery:
    lag = (row.attempted_at - row.created_at).total_seconds() if row.attempted_at else 0.0
    return DueDelivery(
        row.id,
        row.attempts,
        owner,
        endpoint.id,
        endpoint.url,
        row.message_id,
        row.type,
        row.body.encode(),
        tuple(secrets),
        row.receiver,
        max(0.0, lag),
    )


def _open_secrets(keyring: Keyring, endpoint: WebhookEndpoint, old_holds: bool) -> list[str]:
    about = (endpoint.tenant_id, endpoint.id)
    secrets = [keyring.open(Sealed(endpoint.key_id, endpoint.secret), *about)]
    if old_holds and endpoint.old_secret and endpoint.old_key_id:
        secrets.append(keyring.open(Sealed(endpoint.old_key_id, endpoint.old_secret), *about))
    return secrets


def record_result(
    session: Session,
    due: DueDelivery,
    *,
    status_code: int | None,
    error: str | None = None,
    retry_after: float | None = None,
    schedule: Sequence[float],
    chance: float,
) -> str:
    """Notes how a try ended: ``delivered``, ``retry``, ``dead``, ``gone`` or ``stale`` (another sender has
    it).

    ``status_code`` is nothing when no answer came. ``schedule`` holds the delay before each try, the first
    one's too; ``chance`` in [0, 1) spreads delays by ±10 %.
    """
    outcome = _record(session, due, status_code, error, retry_after, schedule, chance)
    tally.note(session, "webhook_deliveries_total", outcome)
    if outcome == "delivered":
        tally.note(session, "webhook_lag_seconds", value=due.lag_seconds)
    return outcome


def _record(
    session: Session,
    due: DueDelivery,
    status_code: int | None,
    error: str | None,
    retry_after: float | None,
    schedule: Sequence[float],
    chance: float,
) -> str:
    webhooks.lock_endpoint(session, due.endpoint_id)
    if status_code is not None and 200 <= status_code < 300:
        kept = webhooks.mark_delivered(session, due.id, due.attempt, due.owner, status_code)
        return "delivered" if kept else "stale"
    gone = status_code == GONE
    wait = None if gone else wait_seconds(due.attempt, status_code, retry_after, schedule, chance)
    endpoint_id = webhooks.mark_failed(
        session,
        due.id,
        due.attempt,
        due.owner,
        status_code=status_code,
        error=(error or f"HTTP {status_code}")[:LONGEST_ERROR],
        wait_seconds=wait,
    )
    if endpoint_id is None:
        return "stale"
    if gone:
        webhooks.disable(session, endpoint_id, "the receiver answered 410 Gone")
        return "gone"
    webhooks.note_failure(session, endpoint_id)
    if webhooks.failing_for(session, endpoint_id, GIVE_UP_SECONDS):
        webhooks.disable(session, endpoint_id, "every delivery failed for five days")
        return "dead"
    return "dead" if wait is None else "retry"


def wait_seconds(
    attempt: int, status_code: int | None, retry_after: float | None, schedule: Sequence[float], chance: float
) -> float | None:
    """Seconds until the try after number ``attempt`` (from 1), or nothing when the schedule is used up."""
    if attempt >= len(schedule):
        return None
    wait = schedule[attempt] * (1 + JITTER * (2 * chance - 1))
    if status_code in SLOW_DOWN:
        wait = max(wait, SLOW_DOWN_SECONDS)
    return max(wait, min(retry_after or 0.0, LONGEST_WAIT_SECONDS))


def check_events(events: Sequence[str] | None) -> list[str]:
    """The event types in our order; ``*`` means all but progress. Raises ``RequestInvalid``."""
    if events is None:
        return list(announcements.DEFAULT_TYPES)
    if not events:
        raise RequestInvalid("An endpoint needs at least one event type, or *.", "/events")
    known = ("*", *announcements.TYPES)
    for position, each in enumerate(events):
        if each not in known:
            raise RequestInvalid(
                f"There is no event {each!r}; events are {', '.join(known)}.", f"/events/{position}"
            )
    return [each for each in known if each in events]


def check_endpoint(
    url: str, events: Sequence[str] | None, secret: str | None, *, allow_http: bool = False
) -> list[str]:
    """The event types that an endpoint would have; raises what ``create_endpoint`` raises."""
    check_url(url, allow_http=allow_http)
    if secret is not None and not signing.is_secret(secret):
        raise RequestInvalid("A webhook secret is whsec_ and the base64 of 24 to 64 bytes.", "/secret")
    return check_events(events)


def check_url(url: str, *, allow_http: bool = False) -> None:
    """Raises ``EndpointUrlInvalid`` for what needs no look-up: scheme, host, port, user, fragment, length."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise EndpointUrlInvalid("The webhook url is no URL.", "/url") from None
    schemes = ("https", "http") if allow_http else ("https",)
    if parts.scheme not in schemes:
        raise EndpointUrlInvalid(f"The webhook url must start with {' or '.join(schemes)}://.", "/url")
    if not host or len(url) > LONGEST_URL or not url.isprintable() or " " in url:
        raise EndpointUrlInvalid(
            "The webhook url names no host, is too long, or holds odd characters.", "/url"
        )
    if port is not None and port < LOWEST_FREE_PORT and port != DEFAULT_PORTS[parts.scheme]:
        raise EndpointUrlInvalid(
            f"The webhook url uses port {port}; use {DEFAULT_PORTS[parts.scheme]} or one from "
            f"{LOWEST_FREE_PORT} on.",
            "/url",
        )
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise EndpointUrlInvalid(
            "The webhook url must not carry a user name, a password or a fragment.", "/url"
        )
