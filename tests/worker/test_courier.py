"""Webhooks from row to receiver and back."""

import json
import threading
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker
from standardwebhooks import Webhook

from db.models.webhook import WebhookDelivery, WebhookEndpoint
from jobs import webhooks
from jobs.keyring import Keyring
from jobs.signing import new_secret
from tests.factories import TEST_SECRET, make_job, make_rules
from tests.waiting import until
from tests.worker.receivers import answer, receiver
from worker.address import parse_networks
from worker.courier import Courier
from worker.deliver import Reply, Sender

LOCAL = Sender(allow_http=True, allowed=parse_networks(["127.0.0.0/8"]), total_seconds=5)
SCHEDULE = (0.0, 0.0, 0.0)


def courier_of(sessions: sessionmaker[Session], sender: Any = LOCAL, **options: Any) -> Courier:
    return Courier(
        sessions.begin,
        Keyring(TEST_SECRET),
        sender,
        options.pop("schedule", SCHEDULE),
        "courier-1",
        **options,
    )


def order(sessions: sessionmaker[Session], url: str, secret: str, events: tuple[str, ...] = ("*",)) -> str:
    with sessions.begin() as session:
        webhook = {"url": url, "secret": secret, "events": events}
        return make_job(session, rules=make_rules(allow_http=True), webhook=webhook).id


def delivery(sessions: sessionmaker[Session]) -> WebhookDelivery:
    with sessions() as session:
        return session.scalars(select(WebhookDelivery)).one()


def parts(request: bytes) -> tuple[dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line.decode().partition(": ") for line in head.split(b"\r\n")[1:]]
    return {name.lower(): value for name, _, value in lines}, body


def test_a_message_is_signed_so_that_the_reference_library_accepts_it(
    sessions: sessionmaker[Session],
) -> None:
    secret = new_secret()
    with receiver(answer("204 No Content", body=b"")) as (port, requests):
        job_id = order(sessions, f"http://127.0.0.1:{port}/hook", secret)
        courier = courier_of(sessions)
        assert courier.deliver_due() == 1
        courier.close()
    headers, body = parts(requests[0])
    told = Webhook(secret).verify(body, headers)
    assert told["type"] == "merge.queued" and told["data"]["id"] == job_id
    row = delivery(sessions)
    assert (row.state, row.status_code, row.attempts) == ("delivered", 204, 1)


def test_every_try_has_the_same_id_and_its_own_time(sessions: sessionmaker[Session]) -> None:
    clock = iter([1_700_000_000.0, 1_700_000_300.0, 1_700_002_100.0])
    with receiver(answer("500 Internal Server Error")) as (port, requests):
        order(sessions, f"http://127.0.0.1:{port}/", new_secret())
        courier = courier_of(sessions, now=lambda: next(clock))
        for number in range(3):
            assert courier.deliver_due() == 1
            until(lambda: delivery(sessions).lease_owner is None)
            assert delivery(sessions).attempts == number + 1
        assert courier.deliver_due() == 0
        courier.close()
    seen = [parts(request)[0] for request in requests]
    assert len({each["webhook-id"] for each in seen}) == 1
    assert [int(each["webhook-timestamp"]) for each in seen] == [1_700_000_000, 1_700_000_300, 1_700_002_100]
    assert delivery(sessions).state == "dead"


def test_during_a_rotation_both_secrets_verify(sessions: sessionmaker[Session]) -> None:
    old = new_secret()
    with receiver(answer("200 OK")) as (port, requests):
        order(sessions, f"http://127.0.0.1:{port}/", old)
        with sessions.begin() as session:
            endpoint = session.scalars(select(WebhookEndpoint)).one()
            new = webhooks.rotate_secret(session, Keyring(TEST_SECRET), endpoint)
        courier = courier_of(sessions)
        courier.deliver_due()
        courier.close()
    headers, body = parts(requests[0])
    for secret in (old, new):
        assert json.loads(body) == Webhook(secret).verify(body, headers)


def test_410_disables_the_endpoint(sessions: sessionmaker[Session]) -> None:
    with receiver(answer("410 Gone")) as (port, _):
        order(sessions, f"http://127.0.0.1:{port}/", new_secret())
        courier = courier_of(sessions)
        courier.deliver_due()
        courier.close()
    with sessions() as session:
        assert session.scalars(select(WebhookEndpoint)).one().disabled_at is not None


def test_a_private_receiver_is_refused_at_the_moment_of_delivery(sessions: sessionmaker[Session]) -> None:
    with receiver(answer("200 OK")) as (port, requests):
        order(sessions, f"http://127.0.0.1:{port}/", new_secret())
        courier = courier_of(sessions, Sender(allow_http=True))
        courier.deliver_due()
        courier.close()
    assert requests == []
    assert "not a public address" in (delivery(sessions).error or "")


def test_a_slow_receiver_keeps_one_hand_busy_and_the_others_deliver(sessions: sessionmaker[Session]) -> None:
    gate = threading.Event()
    sent: list[str] = []

    class Sluggish:
        def post(self, url: str, _headers: dict[str, str], _body: bytes) -> Reply:
            if "slow" in url:
                gate.wait(5)
            sent.append(url)
            return Reply(200)

    order(sessions, "http://slow.example/", new_secret())
    free = threading.Event()
    courier = courier_of(sessions, Sluggish(), hands=2, on_free=free.set)
    assert courier.deliver_due() == 1
    for number in range(3):
        order(sessions, f"http://quick.example/{number}", new_secret())
    while len(sent) < 3:
        assert courier.deliver_due() <= 1
        free.wait(1)
        free.clear()
    assert sent == [f"http://quick.example/{number}" for number in range(3)]
    gate.set()
    courier.close()
    assert sent[-1] == "http://slow.example/"


def test_a_slow_receiver_with_many_messages_leaves_hands_to_a_quick_one(
    sessions: sessionmaker[Session],
) -> None:
    """Also where each message is of an endpoint of its own and the host is written otherwise."""
    gate = threading.Event()
    sender = Sender(allow_http=True, allowed=parse_networks(["127.0.0.0/8", "::1/128"]))
    with receiver(lambda *_: gate.wait(10)) as (slow, _), receiver(answer("200 OK")) as (quick, arrived):
        for number in range(20):
            host = "LOCALHOST" if number % 2 else "localhost"
            order(sessions, f"http://{host}:{slow}/{number}", new_secret())
        courier = courier_of(sessions, sender, schedule=(0.0,))
        assert (courier.deliver_due(), courier.deliver_due()) == (4, 0)
        for number in range(20):
            order(sessions, f"http://127.0.0.1:{quick}/{number}", new_secret())

        def all_arrived() -> bool:
            courier.deliver_due()
            return len(arrived) == 20

        try:
            until(all_arrived)
        finally:
            gate.set()
            courier.close()


def test_a_sender_that_died_leaves_the_message_to_the_next(sessions: sessionmaker[Session]) -> None:
    order(sessions, "http://hook.example/", new_secret())
    with sessions.begin() as session:
        assert len(webhooks.claim_due(session, Keyring(TEST_SECRET), "dead", limit=5, lease_seconds=60)) == 1

    class Accepting:
        def post(self, _url: str, _headers: dict[str, str], _body: bytes) -> Reply:
            return Reply(200)

    courier = courier_of(sessions, Accepting())
    assert courier.deliver_due() == 0
    with sessions.begin() as session:
        session.execute(text("UPDATE webhook_delivery SET lease_until = clock_timestamp()"))
    assert courier.deliver_due() == 1
    courier.close()
    assert delivery(sessions).state == "delivered"


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 270.0), (0.5, 300.0)])
def test_the_next_try_waits_as_the_schedule_says(
    sessions: sessionmaker[Session], chance: float, seconds: float
) -> None:
    class Failing:
        def post(self, _url: str, _headers: dict[str, str], _body: bytes) -> Reply:
            return Reply(500)

    order(sessions, "http://hook.example/", new_secret())
    courier = courier_of(sessions, Failing(), schedule=(0, 300, 1800), chance=lambda: chance)
    courier.deliver_due()
    courier.close()
    with sessions() as session:
        query = "SELECT extract(epoch FROM next_attempt_at - clock_timestamp()) FROM webhook_delivery"
        waits = float(session.scalar(text(query)) or 0)
    assert seconds - 5 < waits <= seconds
