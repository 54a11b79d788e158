"""What becomes of a job that does not succeed, and what is told of it."""

from typing import Any, cast

from sqlalchemy import text

from hub.errors import RateLimited, Unavailable
from hub.folder_faults import Fault
from tests.worker.conftest import Floor
from worker.endings import describe
from worker.scorer import Scorer


def test_a_hub_that_asks_to_be_left_alone_for_minutes_is(floor: Floor) -> None:
    floor.hub.faults.add("info", Fault(status=429, headers={"retry-after": "200"}))
    job = floor.run(floor.order())
    assert (job.state, job.attempt) == ("queued", 1)
    left = text("SELECT extract(epoch FROM not_before - clock_timestamp()) FROM job")
    with floor.sessions() as session:
        assert 150 < float(session.scalar(left) or 0) <= 200


def test_only_a_rate_limit_says_when_to_come_back() -> None:
    limited = describe(RateLimited("later, hf_secretsecret", 90.0))
    assert (limited.wait, limited.retryable, limited.detail) == (90.0, True, "later, [redacted]")
    assert describe(RateLimited("later")).wait == describe(Unavailable("away")).wait == 0.0


class Written:
    """Keeps what would be written of a job."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def write(self, _change: Any, _code: str, detail: str) -> None:
        self.warnings.append(detail)


def test_a_model_that_cannot_be_scored_tells_nobody_a_password() -> None:
    context, nothing = Written(), cast(Any, None)
    scorer = Scorer(nothing, "tenant", cast(Any, context), (), ())
    scorer.leave_out("a", "404 for url https://ann:pass@hub.example/x")
    assert context.warnings == ["a: 404 for url https://[redacted]@hub.example/x"]
    assert scorer.fails == {"a": "404 for url https://[redacted]@hub.example/x"}
