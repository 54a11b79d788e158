"""Requests are counted in the broker, per key; without the broker everybody is let in."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from api.app import create_app
from api.limits import AWAY_SECONDS, Limiter
from settings import Settings
from tests.api.conftest import Who


def test_a_bucket_gives_its_quota_and_then_says_when_to_come_back(valkey_url: str) -> None:
    limiter = Limiter(valkey_url, 3)
    taken = [limiter.take("key") for _ in range(4)]
    limiter.close()
    assert [each and each.admitted for each in taken] == [True, True, True, False]
    assert [each and each.remaining for each in taken] == [2, 1, 0, 0]
    last = taken[-1]
    assert last is not None
    assert 15 <= last.retry_seconds <= 20, "a third of a minute for one token of three a minute"
    assert 55 <= last.reset_seconds <= 60


def test_a_process_takes_one_in_a_hundred_at_a_time_and_counts_down(valkey_url: str) -> None:
    limiter, other = Limiter(valkey_url, 500), Limiter(valkey_url, 500)
    taken = [limiter.take("key") for _ in range(5)]
    assert [each and each.remaining for each in taken] == [499, 498, 497, 496, 495]
    assert all(each and 1 <= each.reset_seconds <= 2 for each in taken), "five of 500 a minute"
    assert limiter.take_held("key") is None
    assert (elsewhere := other.take("key")) is not None and elsewhere.remaining <= 499 - 5 + 1
    limiter.close()
    other.close()


def test_all_processes_together_give_no_more_than_the_quota(valkey_url: str) -> None:
    limiters = [Limiter(valkey_url, 400) for _ in range(3)]
    given = sum(bool((taken := each.take("key")) and taken.admitted) for _ in range(200) for each in limiters)
    for each in limiters:
        each.close()
    assert 400 <= given <= 415, "a few come back while this test runs"


def test_tokens_that_two_requests_fetch_at_once_are_all_kept(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = Limiter(valkey_url, 500)
    ask, others = limiter.script, ["key"]

    def while_another_asks(**request: Any) -> Any:
        if others:
            limiter.take(others.pop())
        return ask(**request)

    monkeypatch.setattr(limiter, "script", while_another_asks)
    limiter.take("key")
    assert limiter.stocks["key"].held == 2 * (limiter.wanted - 1)
    limiter.close()


def test_buckets_of_two_keys_are_apart(valkey_url: str) -> None:
    limiter = Limiter(valkey_url, 1)
    found = [limiter.take(name) for name in ("one", "one", "two")]
    limiter.close()
    assert [each and each.admitted for each in found] == [True, False, True]


def test_tokens_come_back_with_time(valkey_url: str) -> None:
    import time

    limiter = Limiter(valkey_url, 600)
    for _ in range(600):
        limiter.take("key")
    before = limiter.take("key")
    time.sleep(0.3)
    after = limiter.take("key")
    limiter.close()
    assert before is not None
    assert after is not None
    assert after.admitted


def test_an_absent_broker_lets_everybody_in_and_is_not_asked_again_at_once() -> None:
    now = 100.0
    limiter = Limiter("redis://127.0.0.1:9/0", 1, clock=lambda: now)
    assert limiter.take("key") is None
    assert limiter.away_until == now + AWAY_SECONDS
    limiter.broker = None
    assert limiter.take("key") is None


@pytest.fixture
def limited(settings: Settings, valkey_url: str) -> Iterator[TestClient]:
    changed = settings.model_copy(update={"broker_url": valkey_url, "requests_per_minute": 2})
    with TestClient(create_app(changed)) as client:
        yield client


def test_answers_say_how_much_is_left_and_the_last_is_429(limited: TestClient, anna: Who, bert: Who) -> None:
    first = limited.get("/v1/jobs", headers=anna.headers)
    assert first.headers["ratelimit"].startswith('"default";r=1;t=')
    assert first.headers["ratelimit-policy"] == '"default";q=2;w=60'
    assert "retry-after" not in first.headers
    limited.get("/v1/jobs/none", headers=anna.headers)
    refused = limited.get("/v1/jobs", headers=anna.headers)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["ratelimit"].startswith('"default";r=0;t=')
    assert limited.get("/v1/jobs", headers=bert.headers).status_code == 200


def test_the_service_answers_without_a_broker(settings: Settings, anna: Who) -> None:
    changed = settings.model_copy(
        update={"broker_url": "redis://127.0.0.1:9/0", "secret_key": SecretStr("x")}
    )
    with TestClient(create_app(changed)) as client:
        answer = client.get("/v1/jobs", headers=anna.headers)
        ready = client.get("/readyz")
    assert answer.status_code == 200
    assert (ready.status_code, ready.json()["detail"]) == (503, "the broker does not answer")
