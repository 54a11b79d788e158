"""Endpoints and deliveries: schedule, leases, rotation, giving up. Checked with the reference library."""

import threading
from base64 import b64encode
from collections import Counter

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker
from standardwebhooks import Webhook, WebhookVerificationError

from db import webhooks as rows
from db.models.webhook import WebhookEndpoint
from jobs import signing, webhooks
from jobs.errors import EndpointUrlInvalid, IllegalState, NotFound, RequestInvalid
from jobs.keyring import Keyring
from jobs.keys import Caller
from jobs.webhooks import DueDelivery
from tests.factories import make_caller, make_job

SCHEDULE = [0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]


@pytest.fixture
def endpoint(session: Session, keyring: Keyring) -> WebhookEndpoint:
    caller = make_caller(session)
    return webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://example.org/hook")[0]


def claim_one(session: Session, keyring: Keyring, owner: str = "sender") -> DueDelivery:
    (due,) = webhooks.claim_due(session, keyring, owner)
    return due


def failed(
    session: Session, due: DueDelivery, status: int | None = 500, retry_after: float | None = None
) -> str:
    return webhooks.record_result(
        session, due, status_code=status, retry_after=retry_after, schedule=SCHEDULE, chance=0.5
    )


def make_due(session: Session) -> None:
    session.execute(text("UPDATE webhook_delivery SET next_attempt_at = clock_timestamp() - interval '1 s'"))


def waits(session: Session) -> float:
    seconds = text("SELECT extract(epoch FROM next_attempt_at - clock_timestamp()) FROM webhook_delivery")
    return float(session.scalar(seconds) or 0)


def test_every_try_carries_the_same_id_and_body_and_follows_the_schedule(
    session: Session, keyring: Keyring, endpoint: WebhookEndpoint
) -> None:
    webhooks.send_test(session, endpoint)
    seen = set()
    for attempt, wait in enumerate([*SCHEDULE[1:], None], start=1):
        due = claim_one(session, keyring)
        assert due.attempt == attempt
        seen.add((due.message_id, due.body))
        outcome = failed(session, due)
        if wait is None:
            assert outcome == "dead"
        else:
            assert outcome == "retry"
            assert waits(session) == pytest.approx(wait, abs=2)
        make_due(session)
    assert len(seen) == 1
    assert webhooks.claim_due(session, keyring, "sender") == []


@pytest.mark.parametrize(
    ("attempt", "status", "retry_after", "chance", "expected"),
    [
        (1, 500, None, 0.5, 5.0),
        (1, 500, None, 0.0, 4.5),
        (1, None, None, 0.999, 5.499),
        (1, 429, None, 0.5, 60.0),
        (1, 503, 120.0, 0.5, 120.0),
        (2, 500, 10.0, 0.5, 300.0),
        (1, 500, 1e9, 0.5, 86400.0),
        (10, 500, None, 0.5, None),
    ],
)
def test_the_wait_has_jitter_and_honours_the_receiver(
    attempt: int, status: int | None, retry_after: float | None, chance: float, expected: float | None
) -> None:
    found = webhooks.wait_seconds(attempt, status, retry_after, SCHEDULE, chance)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_two_senders_never_get_the_same_delivery(sessions: sessionmaker[Session], keyring: Keyring) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        row, _ = webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://example.org")
        ids = [webhooks.send_test(session, row).id for _ in range(60)]
    taken: list[str] = []

    def work(owner: str) -> None:
        while True:
            with sessions.begin() as session:
                due = webhooks.claim_due(session, keyring, owner, limit=5)
            if not due:
                return
            taken.extend(each.id for each in due)

    threads = [threading.Thread(target=work, args=(f"sender-{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(taken) == Counter(ids)


def test_a_dead_sender_s_delivery_goes_to_another_and_its_late_report_is_ignored(
    session: Session, keyring: Keyring, endpoint: WebhookEndpoint
) -> None:
    webhooks.send_test(session, endpoint)
    first = claim_one(session, keyring, "one")
    assert webhooks.claim_due(session, keyring, "two") == []
    session.execute(text("UPDATE webhook_delivery SET lease_until = clock_timestamp() - interval '1 s'"))
    second = claim_one(session, keyring, "two")
    assert (second.id, second.attempt, second.message_id) == (first.id, 2, first.message_id)
    assert failed(session, first, 200) == "stale"
    assert failed(session, first, 500) == "stale"
    assert failed(session, second, 204) == "delivered"


def test_a_sender_that_claims_its_own_lost_delivery_again_counts_one_report_only(
    session: Session, keyring: Keyring, endpoint: WebhookEndpoint
) -> None:
    webhooks.send_test(session, endpoint)
    first = claim_one(session, keyring)
    session.execute(text("UPDATE webhook_delivery SET lease_until = clock_timestamp() - interval '1 s'"))
    second = claim_one(session, keyring)
    assert failed(session, first, 500) == "stale"
    assert failed(session, second, 200) == "delivered"


def test_410_disables_the_endpoint_and_drops_what_waits(
    session: Session, keyring: Keyring, endpoint: WebhookEndpoint
) -> None:
    webhooks.send_test(session, endpoint)
    due = claim_one(session, keyring)
    webhooks.send_test(session, endpoint)
    assert failed(session, due, 410) == "gone"
    session.refresh(endpoint)
    assert endpoint.disabled_at is not None and "410" in (endpoint.disabled_reason or "")
    assert webhooks.claim_due(session, keyring, "w") == []
    with pytest.raises(IllegalState, match="enable it first"):
        webhooks.send_test(session, endpoint)
    sent = len(webhooks.deliveries(session, endpoint))
    make_job(session, Caller(endpoint.tenant_id, "", frozenset()))
    assert len(webhooks.deliveries(session, endpoint)) == sent
    webhooks.update_endpoint(session, endpoint, enabled=True)
    webhooks.send_test(session, endpoint)
    assert len(webhooks.claim_due(session, keyring, "w")) == 1


def test_a_receiver_is_a_host_however_it_is_written_and_gets_no_more_than_its_part(
    session: Session, keyring: Keyring
) -> None:
    caller = make_caller(session)
    urls = ("https://a.example/x", "https://A.example:8443?y", "https://a.example./z", "https://b.example")
    ends = [webhooks.create_endpoint(session, keyring, caller.tenant_id, url)[0] for url in urls]
    for _ in range(2):
        for each in ends:
            webhooks.send_test(session, each)
    taken = webhooks.claim_due(session, keyring, "w", each=3, held={"a.example": 1})
    assert [each.receiver for each in taken] == ["a.example", "a.example", "b.example", "b.example"]
    webhooks.update_endpoint(session, ends[0], url="https://c.example")
    taken = webhooks.claim_due(session, keyring, "w", each=3, held={"a.example": 3})
    assert [(each.receiver, each.endpoint_id) for each in taken] == [("c.example", ends[0].id)]


def test_senders_that_report_at_once_do_not_block_each_other(
    sessions: sessionmaker[Session], keyring: Keyring
) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        row, _ = webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://example.org")
        for _ in range(40):
            webhooks.send_test(session, row)
    with sessions.begin() as session:
        due = webhooks.claim_due(session, keyring, "sender", limit=40)
    outcomes: list[str] = []

    def report(part: list[DueDelivery]) -> None:
        for each in part:
            with sessions.begin() as session:
                outcomes.append(failed(session, each, 410))

    threads = [threading.Thread(target=report, args=(due[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {"gone": 1, "stale": 39}


def test_five_days_of_nothing_but_failure_disable_the_endpoint_and_one_success_clears_the_record(
    session: Session, keyring: Keyring, endpoint: WebhookEndpoint
) -> None:
    age = text("UPDATE webhook_endpoint SET failing_since = failing_since - interval '5 days 1 s'")
    webhooks.send_test(session, endpoint)
    assert failed(session, claim_one(session, keyring)) == "retry"
    make_due(session)
    assert failed(session, claim_one(session, keyring), 200) == "delivered"
    session.execute(age)
    webhooks.send_test(session, endpoint)
    assert failed(session, claim_one(session, keyring)) == "retry"
    session.execute(age)
    make_due(session)
    assert failed(session, claim_one(session, keyring)) == "dead"
    session.refresh(endpoint)
    assert "five days" in (endpoint.disabled_reason or "")


def test_after_rotation_both_secrets_verify_for_a_day(session: Session, keyring: Keyring) -> None:
    caller = make_caller(session)
    endpoint, old = webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://example.org")
    new = webhooks.rotate_secret(session, keyring, endpoint)
    webhooks.send_test(session, endpoint)
    due = claim_one(session, keyring)
    assert due.secrets == (new, old)
    now = session.scalar(text("SELECT extract(epoch FROM now())::bigint"))
    assert isinstance(now, int)
    headers = signing.sign(due.secrets, due.message_id, now, due.body)
    for secret in (old, new):
        assert Webhook(secret).verify(due.body, headers)["type"] == "endpoint.test"
    with pytest.raises(WebhookVerificationError):
        Webhook(signing.new_secret()).verify(due.body, headers)
    failed(session, due)
    session.execute(text("UPDATE webhook_endpoint SET old_secret_until = old_secret_until - interval '24 h'"))
    make_due(session)
    assert claim_one(session, keyring).secrets == (new,)


def test_redelivery_starts_over_under_the_same_id(
    session: Session, keyring: Keyring, endpoint: WebhookEndpoint
) -> None:
    sent = webhooks.send_test(session, endpoint)
    due = claim_one(session, keyring)
    with pytest.raises(IllegalState, match="this moment"):
        webhooks.redeliver(session, endpoint.tenant_id, sent.id)
    failed(session, due, 200)
    webhooks.redeliver(session, endpoint.tenant_id, sent.id)
    again = claim_one(session, keyring)
    assert (again.message_id, again.attempt) == (due.message_id, 1)


def test_another_tenant_finds_neither_endpoint_nor_delivery(
    session: Session, endpoint: WebhookEndpoint
) -> None:
    sent = webhooks.send_test(session, endpoint)
    stranger = make_caller(session, "stranger")
    with pytest.raises(NotFound):
        webhooks.get_endpoint(session, stranger.tenant_id, endpoint.id)
    with pytest.raises(NotFound):
        webhooks.redeliver(session, stranger.tenant_id, sent.id)


def test_secrets_are_not_in_the_rows_nor_in_what_is_printed(session: Session, keyring: Keyring) -> None:
    caller = make_caller(session)
    endpoint, secret = webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://example.org")
    webhooks.send_test(session, endpoint)
    due = claim_one(session, keyring)
    assert due.secrets == (secret,) and secret not in repr(due)
    assert secret.encode() not in endpoint.secret


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "ftp://example.org",
        "https://",
        "https://user:pw@example.org",
        "https://example.org/#a",
        "https://exa mple.org",
        "https://example.org:notaport/",
        "https://example.org/" + "x" * 2100,
        "example.org",
    ],
)
def test_urls_that_may_never_be_called_are_refused(url: str) -> None:
    with pytest.raises(EndpointUrlInvalid):
        webhooks.check_url(url)


def test_plain_http_needs_the_operator_s_permission() -> None:
    webhooks.check_url("http://127.0.0.1:9999/x", allow_http=True)


def test_a_secret_is_base64_and_nothing_else() -> None:
    good = signing.new_secret()
    assert signing.is_secret(good) and len(set(good)) > 20
    assert not any(signing.is_secret(each) for each in (good[:9] + "!" + good[9:], good + "*", good[6:]))
    sizes = [size for size in range(70) if signing.is_secret("whsec_" + b64encode(bytes(size)).decode())]
    assert sizes == list(range(24, 65))


def test_unknown_events_and_unfit_secrets_are_refused(session: Session, keyring: Keyring) -> None:
    with pytest.raises(RequestInvalid, match=r"merge\.suceeded") as refused:
        webhooks.check_events(["merge.failed", "merge.suceeded"])
    assert refused.value.pointer == "/events/1"
    caller = make_caller(session)
    with pytest.raises(RequestInvalid, match="whsec_"):
        webhooks.create_endpoint(
            session, keyring, caller.tenant_id, "https://a.example", secret="whsec_c2hvcnQ="
        )


def test_pages_of_deliveries_follow_each_other(session: Session, endpoint: WebhookEndpoint) -> None:
    ids = [webhooks.send_test(session, endpoint).id for _ in range(5)]
    first = webhooks.deliveries(session, endpoint, limit=3)
    rest = webhooks.deliveries(session, endpoint, limit=3, after=(first[-1].created_at, first[-1].id))
    assert [each.id for each in (*first, *rest)] == ids[::-1]
    assert rows.deliveries(session, endpoint.id, limit=9, state="delivered") == []


def test_an_endpoint_whose_secret_is_lost_holds_up_nobody_else(session: Session, keyring: Keyring) -> None:
    caller = make_caller(session)
    stranger = Keyring("a secret that this service does not have")
    lost, _ = webhooks.create_endpoint(session, stranger, caller.tenant_id, "https://example.org/lost")
    good, _ = webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://example.org/good")
    webhooks.send_test(session, lost)
    webhooks.send_test(session, good)
    assert [due.endpoint_id for due in webhooks.claim_due(session, keyring, "sender")] == [good.id]
    session.refresh(lost)
    assert lost.disabled_at is not None
    assert "key" in (lost.disabled_reason or "")
