"""Lists of jobs, and what frequent reads answer with: pages, filters, few queries."""

import time

from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.schemas.common import PageOut
from api.schemas.jobs import EventsOut, JobOut, JobShortOut
from db import jobs
from tests.api.conftest import ORDER


def test_lists_page_by_page_without_gaps_or_repeats(api: TestClient) -> None:
    made = [api.post("/v1/jobs", json=ORDER).json()["id"] for _ in range(5)]
    seen: list[str] = []
    api.post("/v1/jobs", json=ORDER | {"metadata": {"team": "vision"}})
    url = "/v1/jobs?limit=2&metadata[team]=nlp"
    while url:
        answer = api.get(url)
        seen += [each["id"] for each in answer.json()["data"]]
        link = answer.headers.get("link", "")
        assert bool(link) == answer.json()["has_more"]
        url = link.partition(">")[0].removeprefix("<http://testserver") if link else ""
    assert seen == made[::-1]


def test_a_cursor_is_bound_to_its_filters_and_to_our_signature(api: TestClient) -> None:
    for _ in range(2):
        api.post("/v1/jobs", json=ORDER)
    cursor = api.get("/v1/jobs?limit=1").json()["next_cursor"]
    assert api.get("/v1/jobs", params={"limit": 1, "cursor": cursor}).status_code == 200
    for query in ({"cursor": cursor, "state": "queued"}, {"cursor": "A" + cursor[1:]}, {"cursor": "%"}):
        answer = api.get("/v1/jobs", params=query)
        assert (answer.status_code, answer.json()["code"]) == (400, "cursor_invalid")


def test_filters_choose_by_state_method_metadata_and_time(api: TestClient) -> None:
    first = api.post("/v1/jobs", json=ORDER).json()
    second = api.post("/v1/jobs", json=ORDER | {"metadata": {"team": "vision"}}).json()
    api.post(f"/v1/jobs/{second['id']}/cancel")

    def ids(query: str) -> list[str]:
        return [each["id"] for each in api.get(f"/v1/jobs?{query}").json()["data"]]

    assert ids("state=queued") == [first["id"]]
    assert ids("state=queued&state=cancelled") == [second["id"], first["id"]]
    assert ids("metadata[team]=vision") == [second["id"]]
    assert ids("method=linear&metadata[team]=nlp") == [first["id"]]
    assert ids("method=ties") == []
    assert ids(f"created_after={first['created_at']}") == [second["id"]]
    assert api.get("/v1/jobs?staet=queued").status_code == 422


def test_what_is_written_at_once_is_what_the_models_describe(api: TestClient) -> None:
    """Answers to frequent reads pass by the models, which callers know them by."""
    made = api.post("/v1/jobs", json=ORDER).json()
    full = api.get(f"/v1/jobs/{made['id']}").json()
    assert JobOut.model_validate(full).model_dump(mode="json") == full
    assert made == full
    listed = api.get("/v1/jobs").json()
    assert PageOut[JobShortOut].model_validate(listed).model_dump(mode="json") == listed
    assert listed["data"] == [{name: full[name] for name in JobShortOut.model_fields}]
    events = api.get(f"/v1/jobs/{made['id']}/events").json()
    assert EventsOut.model_validate(events).model_dump(mode="json") == events


def test_a_list_leaves_what_is_large_in_the_database(api: TestClient) -> None:
    api.post("/v1/jobs", json=ORDER)
    said: list[str] = []
    desk = api.app.state.desk  # type: ignore[attr-defined]
    event.listen(desk.engine, "before_cursor_execute", lambda *args: said.append(args[2]))
    assert api.get("/v1/jobs").status_code == 200
    text = next(each for each in said if "FROM job" in each)
    assert "job.plan" not in text and "job.recipe," not in text and "job.spec," not in text


def test_reading_one_job_takes_one_query(
    api: TestClient, app: object, engine: object, sessions: sessionmaker[Session]
) -> None:
    job = api.post("/v1/jobs", json=ORDER).json()
    said: list[str] = []
    desk = api.app.state.desk  # type: ignore[attr-defined]
    while not desk.feed.hearing:
        time.sleep(0.01)
    api.get("/v1/jobs")
    made = desk.engine
    event.listen(made, "before_cursor_execute", lambda *args: said.append(args[2]))
    assert api.get(f"/v1/jobs/{job['id']}").status_code == 200
    assert len(said) == 1, said
    with sessions.begin() as session:
        assert jobs.get(session, job["id"]) is not None
