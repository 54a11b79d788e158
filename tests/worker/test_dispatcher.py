"""The dispatcher's loops over a real database."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from db.listen import listen
from db.models.webhook import WebhookDelivery
from jobs import idempotency
from jobs.keyring import Keyring
from jobs.signing import new_secret
from tests.factories import TEST_SECRET, let_lease_run_out, make_caller, make_job, make_rules, make_running
from tests.waiting import until
from tests.worker.receivers import answer, receiver
from worker.address import parse_networks
from worker.courier import Courier
from worker.deliver import Sender
from worker.dispatcher import Dispatcher
from worker.sweep import Doorbell, Keeping

DAY = 86_400.0


@pytest.fixture
def rung() -> list[str]:
    return []


@pytest.fixture
def dispatcher(sessions: sessionmaker[Session], postgres_url: str, rung: list[str]) -> Dispatcher:
    """One that polls so seldom that only wake-ups can explain what a test sees."""
    sender = Sender(allow_http=True, allowed=parse_networks(["127.0.0.0/8"]), total_seconds=2)
    courier = Courier(sessions.begin, Keyring(TEST_SECRET), sender, (0.0, 0.0), "test")
    doorbell = Doorbell(sessions.begin, lambda job_id, _queue: rung.append(job_id), 60)
    made = Dispatcher(
        sessions.begin, doorbell, courier, partial(listen, postgres_url), Keeping(DAY, DAY), poll_seconds=30
    )
    courier.on_free = made.wake_mail
    return made


@contextmanager
def running(dispatcher: Dispatcher) -> Iterator[None]:
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    try:
        yield
    finally:
        dispatcher.stop()
        thread.join(10)
        assert not thread.is_alive()


def test_a_new_job_is_announced_at_once_without_waiting_for_the_poll(
    dispatcher: Dispatcher, sessions: sessionmaker[Session], rung: list[str]
) -> None:
    with running(dispatcher):
        time.sleep(0.5)
        with sessions.begin() as session:
            job_id = make_job(session).id
        until(lambda: rung == [job_id], 3)


def test_a_job_that_waits_already_is_announced_at_the_start(
    dispatcher: Dispatcher, sessions: sessionmaker[Session], rung: list[str]
) -> None:
    with sessions.begin() as session:
        job_id = make_job(session).id
    with running(dispatcher):
        until(lambda: rung == [job_id])


def test_two_dispatchers_announce_a_job_once(
    dispatcher: Dispatcher, sessions: sessionmaker[Session], postgres_url: str, rung: list[str]
) -> None:
    other = Dispatcher(
        sessions.begin,
        Doorbell(sessions.begin, lambda job_id, _: rung.append(job_id), 60),
        dispatcher.courier,
        partial(listen, postgres_url),
        Keeping(DAY, DAY),
        poll_seconds=30,
    )
    with running(dispatcher), running(other):
        with sessions.begin() as session:
            ids = {make_job(session).id for _ in range(10)}
        until(lambda: set(rung) == ids)
        time.sleep(0.2)
    assert len(rung) == 10


def test_a_lost_job_is_found_and_announced(
    dispatcher: Dispatcher, sessions: sessionmaker[Session], rung: list[str]
) -> None:
    dispatcher.sweep_seconds = 0.1
    dispatcher.poll_seconds = 0.1
    with running(dispatcher):
        with sessions.begin() as session:
            job, _ = make_running(session)
            let_lease_run_out(session, job.id)
        until(lambda: rung == [job.id])


def test_a_webhook_leaves_as_soon_as_its_event_is_committed(
    dispatcher: Dispatcher, sessions: sessionmaker[Session]
) -> None:
    with receiver(answer("500 no")) as (port, requests), running(dispatcher):
        time.sleep(0.5)
        with sessions.begin() as session:
            webhook = {"url": f"http://127.0.0.1:{port}/", "secret": new_secret()}
            make_job(session, rules=make_rules(allow_http=True), webhook=webhook)
        until(lambda: len(requests) == 2, 4)
    with sessions() as session:
        assert session.scalars(select(WebhookDelivery)).one().state == "dead"


def test_a_database_or_broker_that_fails_for_a_while_stops_no_loop(
    dispatcher: Dispatcher, sessions: sessionmaker[Session], rung: list[str]
) -> None:
    failures = iter([ConnectionError("away"), ConnectionError("away")])
    ring = dispatcher.doorbell.ring

    def flaky(job_id: str, queue: str) -> None:
        error = next(failures, None)
        if error is not None:
            raise error
        ring(job_id, queue)

    dispatcher.doorbell.ring = flaky
    dispatcher.poll_seconds = 0.1
    with sessions.begin() as session:
        job_id = make_job(session).id
    with running(dispatcher):
        until(lambda: rung == [job_id])


def test_old_answers_are_forgotten_by_the_dispatcher(
    dispatcher: Dispatcher, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        held = idempotency.reserve(session, caller.tenant_id, "k", "hash")
        assert isinstance(held, idempotency.Reservation)
        idempotency.finish(session, held, 202, {})
        session.execute(text("UPDATE idempotency_key SET created_at = created_at - interval '73 h'"))

    def kept() -> int:
        with sessions() as session:
            return session.scalar(text("SELECT count(*) FROM idempotency_key")) or 0

    assert kept() == 1
    with running(dispatcher):
        until(lambda: kept() == 0)
