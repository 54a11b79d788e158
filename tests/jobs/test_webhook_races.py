"""Endpoints and messages that several callers and senders are at work on at once."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from db import webhooks as rows
from db.models.webhook import WebhookEndpoint
from jobs import webhooks
from jobs.errors import NotFound
from jobs.keyring import Keyring
from tests.factories import make_caller, make_job

Change = Callable[[Session, Keyring, WebhookEndpoint], object]


def test_a_message_made_while_its_endpoint_is_disabled_does_not_wait_for_ever(
    sessions: sessionmaker[Session], keyring: Keyring
) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://example.org")
    with sessions.begin() as session:
        make_job(session, caller)
        with sessions.begin() as other:
            (row,) = webhooks.list_endpoints(other, caller.tenant_id)
            webhooks.update_endpoint(other, row, enabled=False)
    with sessions.begin() as session:
        assert webhooks.claim_due(session, keyring, "w") == []
        assert rows.waiting(session) == (0, 0.0)
        assert [each.state for each in webhooks.deliveries(session, row)] == ["dead"]


def test_a_job_goes_on_while_an_endpoint_that_hears_of_it_is_removed(
    sessions: sessionmaker[Session], keyring: Keyring
) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        gone, kept = (
            webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://example.org")[0]
            for _ in range(2)
        )

    def submit() -> None:
        with sessions.begin() as session:
            make_job(session, caller)

    with ThreadPoolExecutor(1) as pool, sessions.begin() as session:
        webhooks.delete_endpoint(session, gone)
        waiting = pool.submit(submit)
        time.sleep(0.2)
        session.commit()
        waiting.result(timeout=5)
    with sessions() as session:
        assert len(webhooks.deliveries(session, kept)) == 1


def test_a_message_that_is_forgotten_while_it_is_to_be_sent_again_is_not_found(
    sessions: sessionmaker[Session], keyring: Keyring
) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        row, _ = webhooks.create_endpoint(session, keyring, caller.tenant_id, "https://example.org")
        message = webhooks.send_test(session, row)

    def redeliver() -> None:
        with sessions.begin() as session:
            webhooks.redeliver(session, caller.tenant_id, message.id)

    with ThreadPoolExecutor(1) as pool, sessions.begin() as session:
        rows.lock_endpoint(session, row.id)
        waiting = pool.submit(redeliver)
        time.sleep(0.2)
        session.execute(text("DELETE FROM webhook_delivery"))
        session.commit()
        with pytest.raises(NotFound):
            waiting.result(timeout=5)


@contextmanager
def seen_twice(
    sessions: sessionmaker[Session], keyring: Keyring
) -> Iterator[tuple[Session, WebhookEndpoint, Session, WebhookEndpoint]]:
    """An endpoint as two transactions have read it, each with its session."""
    with sessions.begin() as session:
        tenant = make_caller(session).tenant_id
        made, _ = webhooks.create_endpoint(session, keyring, tenant, "https://example.org/hook")
        made_id = made.id
    with sessions() as slow, sessions() as quick:
        seen, same = (webhooks.get_endpoint(each, tenant, made_id) for each in (slow, quick))
        yield slow, seen, quick, same


CHANGES: list[Change] = [
    lambda session, _, row: webhooks.update_endpoint(session, row),
    lambda session, _, row: webhooks.update_endpoint(session, row, description="ours"),
    lambda session, _, row: webhooks.update_endpoint(session, row, enabled=False),
    lambda session, keyring, row: webhooks.rotate_secret(session, keyring, row),
    lambda session, _, row: webhooks.send_test(session, row),
]


@pytest.mark.parametrize("change", CHANGES)
def test_an_endpoint_that_somebody_removes_meanwhile_is_not_found(
    sessions: sessionmaker[Session], keyring: Keyring, change: Change
) -> None:
    with seen_twice(sessions, keyring) as (slow, row, quick, same):
        webhooks.delete_endpoint(quick, same)
        quick.commit()
        with pytest.raises(NotFound):
            change(slow, keyring, row)


def test_of_two_rotations_at_once_the_first_secret_goes_on_for_a_day(
    sessions: sessionmaker[Session], keyring: Keyring
) -> None:
    with seen_twice(sessions, keyring) as (slow, row, quick, same):
        first = webhooks.rotate_secret(quick, keyring, same)
        quick.commit()
        second = webhooks.rotate_secret(slow, keyring, row)
        webhooks.send_test(slow, row)
        slow.commit()
    with sessions.begin() as session:
        (due,) = webhooks.claim_due(session, keyring, "sender")
        assert due.secrets == (second, first)
