"""How a job comes to be: recorded whole, within its quota, for its own tenant."""

import threading

import pytest
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from db import artifacts, fronts, jobs
from jobs import credentials, events, lifecycle, recording
from jobs.errors import IllegalState, ModelNameInvalid, NotFound, QuotaExceeded, RequestInvalid
from jobs.keyring import Keyring
from jobs.request import JobRequest, read_order
from jobs.submit import retry, submit
from tests.factories import RECIPE, make_caller, make_job, make_request, make_rules, make_running


def test_a_job_keeps_its_order_and_says_that_it_waits_to_be_planned(session: Session) -> None:
    caller = make_caller(session)
    request = make_request(
        output={"repo": "org/out"}, metadata={"team": "a"}, priority=3, timeout=99, expires_in=60
    )
    job = submit(session, caller, request, None, make_rules())
    assert (job.state, job.phase, job.method, job.queue) == ("queued", "resolving", "linear", "cpu")
    assert (job.priority, job.timeout_seconds, job.metadata_) == (3, 99.0, {"team": "a"})
    assert job.root_id == job.id and job.id.startswith("job_") and len(job.id) == 30
    assert job.expires_at is not None and 50 < (job.expires_at - job.created_at).total_seconds() < 61
    assert JobRequest.model_validate(job.spec) == request
    assert [event.type for event in events.after(session, job.id, 0)] == ["merge.queued"]


def test_the_names_of_an_order_keep_their_order(session: Session) -> None:
    tokens = {"<later>": {"source": "zero"}, "<a>": {"source": "zero"}}
    space = {name: {"at": f"sources.{name}.weight", "low": 0, "high": 1} for name in ("math", "code")}
    order = {
        "kind": "search",
        "recipe": RECIPE | {"tokenizer": {"source": "base", "tokens": tokens}},
        "search": {"method": "grid", "space": space, "objectives": [{"set": "texts"}]},
        "evaluate": {"sets": [{"name": "texts", "kind": "perplexity", "data": {"hub": "a/b", "file": "c"}}]},
    }
    job = submit(session, make_caller(session), read_order(order), None, make_rules())
    fronts.put(session, job.id, {"recipe": job.recipe})
    session.expire_all()
    assert list(job.spec["search"]["space"]) == ["math", "code"]
    for recipe in (job.spec["recipe"], job.recipe, (fronts.of_job(session, job.id) or {})["recipe"]):
        assert list(recipe["tokenizer"]["tokens"]) == ["<later>", "<a>"]


def test_the_operator_s_time_limit_wins(session: Session) -> None:
    assert make_job(session, timeout=9999, rules=make_rules(timeout_seconds=10)).timeout_seconds == 10


def test_the_quota_counts_waiting_jobs_of_the_tenant_only(session: Session) -> None:
    caller, other = make_caller(session, "a"), make_caller(session, "b")
    rules = make_rules(max_queued_jobs=2)
    first = make_job(session, caller, rules=rules)
    make_job(session, caller, rules=rules)
    make_job(session, other, rules=rules)
    with pytest.raises(QuotaExceeded, match="2 jobs"):
        make_job(session, caller, rules=rules)
    lifecycle.claim(session, first.id, "w", 60)
    make_job(session, caller, rules=rules)


def test_the_quota_holds_for_retries_too(session: Session) -> None:
    caller, rules = make_caller(session), make_rules(max_queued_jobs=1)
    job, fence = make_running(session, caller=caller)
    lifecycle.fail(session, fence, "hub_unavailable", "no answer")
    make_job(session, caller, rules=rules)
    with pytest.raises(QuotaExceeded, match="1 job"):
        retry(session, caller, job, rules)


def test_the_quota_holds_when_many_submit_at_once(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
    refused: list[str] = []

    def work() -> None:
        try:
            with sessions.begin() as session:
                make_job(session, caller, rules=make_rules(max_queued_jobs=3))
        except QuotaExceeded as error:
            refused.append(error.code)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sessions() as session:
        assert jobs.quota(session, caller.tenant_id) == (None, 3)
    assert len(refused) == 5


def test_credentials_and_datasets_of_others_are_not_found(session: Session, keyring: Keyring) -> None:
    caller, other = make_caller(session, "a"), make_caller(session, "b")
    theirs = credentials.store_token(session, keyring, other.tenant_id, "x", "hf_x")
    data = artifacts.put_dataset(session, other.tenant_id, "t.jsonl", "0" * 64, b"{}")
    with pytest.raises(NotFound, match="Hub credential"):
        make_job(session, caller, hub_credential=theirs.id)
    sets = [{"name": "s", "kind": "perplexity", "data": {"dataset": data.id}}]
    with pytest.raises(RequestInvalid, match=data.id) as refused:
        make_job(session, caller, evaluate={"sets": sets})
    assert refused.value.pointer == "/evaluate/sets/0/data/dataset"
    assert make_job(session, other, evaluate={"sets": sets}).spec["evaluate"]["sets"][0]["name"] == "s"


def test_texts_outside_the_roots_are_refused(session: Session) -> None:
    sets = [{"name": "s", "kind": "choice", "data": {"path": "/etc/passwd"}}]
    with pytest.raises(ModelNameInvalid, match="allows no folders"):
        make_job(session, evaluate={"sets": sets})


def test_the_same_upload_is_kept_once(session: Session) -> None:
    caller = make_caller(session)
    first = artifacts.put_dataset(session, caller.tenant_id, "a", "1" * 64, b"abc")
    again = artifacts.put_dataset(session, caller.tenant_id, "b", "1" * 64, b"abc")
    assert (again.id, again.name, len(artifacts.datasets(session, caller.tenant_id))) == (first.id, "a", 1)
    whole = artifacts.dataset(session, caller.tenant_id, first.id, with_body=True)
    assert whole is not None and whole.body == b"abc"


def test_a_retry_is_a_new_job_with_the_same_pinned_inputs(session: Session) -> None:
    caller = make_caller(session)
    job, fence = make_running(session, caller=caller, metadata={"a": "b"})
    row = {"role": "base", "kind": "hub", "repo": "org/base", "sha": "c" * 40}
    recording.record_inputs(session, fence, [row])
    with pytest.raises(IllegalState, match="running"):
        retry(session, caller, job, make_rules())
    lifecycle.fail(session, fence, "hub_unavailable", "no answer")
    session.refresh(job)
    again = retry(session, caller, job, make_rules())
    assert (again.state, again.attempt, again.retry_of, again.root_id) == ("queued", 0, job.id, job.id)
    assert (again.spec, again.metadata_, again.error_code) == (job.spec, job.metadata_, None)
    assert [(each.role, each.sha) for each in jobs.inputs(session, again.id)] == [("base", "c" * 40)]
    assert [each.id for each in jobs.retries(session, job.id)] == [job.id, again.id]


def test_one_job_of_a_chain_of_retries_is_at_work_at_a_time(session: Session) -> None:
    caller = make_caller(session)
    job, fence = make_running(session, caller=caller)
    lifecycle.fail(session, fence, "hub_unavailable", "no answer")
    again = retry(session, caller, job, make_rules())
    with pytest.raises(IllegalState, match=f"{again.id}, which is queued"):
        retry(session, caller, job, make_rules())
    lifecycle.request_cancel(session, again)
    third = retry(session, caller, job, make_rules())
    with pytest.raises(IllegalState, match=third.id):
        retry(session, caller, again, make_rules())


def test_two_who_retry_at_once_make_one_job(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        job, fence = make_running(session, caller=caller)
        lifecycle.fail(session, fence, "hub_unavailable", "no answer")
    ready, refused = threading.Barrier(4), list[str]()

    def work() -> None:
        try:
            with sessions.begin() as session:
                seen = jobs.of_tenant(session, caller.tenant_id, job.id)
                assert seen is not None
                ready.wait(10)
                retry(session, caller, seen, make_rules())
        except IllegalState as error:
            refused.append(error.code)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["illegal_state"] * 3


def test_whoever_asks_for_a_retry_does_not_stop_the_one_that_is_at_work(
    sessions: sessionmaker[Session],
) -> None:
    """The asker holds the first job of the chain and waits for the one at work, which must not wait too."""
    with sessions.begin() as session:
        caller = make_caller(session)
        first = lifecycle.fail(session, make_running(session)[1], "no", "no")
        again = retry(session, caller, first, make_rules())
        claimed = lifecycle.claim(session, again.id, "w", 60)
        assert claimed is not None
        fence = lifecycle.fence_of(claimed)
    with sessions.begin() as asking, sessions.begin() as working:
        assert jobs.lock(asking, first.id) is not None
        working.execute(text("SET LOCAL lock_timeout = '200ms'"))
        lifecycle.enter_phase(working, fence, "merging")


def test_a_job_deleted_meanwhile_is_not_retried(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        caller = make_caller(session)
        job, fence = make_running(session, caller=caller)
        lifecycle.fail(session, fence, "hub_unavailable", "no answer")
    with sessions.begin() as session:
        seen = jobs.of_tenant(session, caller.tenant_id, job.id)
        assert seen is not None
        with sessions.begin() as other:
            lifecycle.delete(other, seen)
        with pytest.raises(NotFound, match=job.id):
            retry(session, caller, seen, make_rules())


def test_a_job_that_was_tried_again_is_deleted_after_its_retries(session: Session) -> None:
    caller = make_caller(session)
    job, fence = make_running(session, caller=caller)
    lifecycle.fail(session, fence, "hub_unavailable", "no answer")
    session.refresh(job)
    again = retry(session, caller, job, make_rules())
    lifecycle.request_cancel(session, again)
    third = retry(session, caller, again, make_rules())
    lifecycle.request_cancel(session, third)
    with pytest.raises(IllegalState, match=f"{again.id}, {third.id}"):
        lifecycle.delete(session, job)
    for each in (again, third, job):
        lifecycle.delete(session, each)
    assert jobs.retries(session, job.id) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "succeeded"},
        {"tenant_id": "ten_x"},
        {"output": {"repo": "no-slash"}},
        {"output": {"repo": "../x"}},
        {"output": {"publish": "maybe"}},
        {"metadata": {f"k{number}": "v" for number in range(17)}},
        {"metadata": {"k": "v" * 513}},
        {"metadata": {"": "v"}},
        {"priority": 101},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"expires_in": -1},
        {"evaluate": {"sets": [{"name": "s", "kind": "choice", "data": {}}]}},
        {"evaluate": {"sets": [{"name": "s", "kind": "choice", "data": {"hub": "a/b"}}]}},
        {"evaluate": {"sets": [{"name": "s", "kind": "choice", "data": {"path": "x", "dataset": "ds_1"}}]}},
        {"evaluate": {"sets": [{"name": "s", "kind": "choice", "data": {"path": "x"}}] * 2}},
        {"webhook": {"url": "https://a.example", "events": []}},
    ],
)
def test_what_is_not_in_the_form_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make_request(**fields)
