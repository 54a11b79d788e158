"""Fronts over HTTP: measured and predicted points, which one suits, and any of them merged for good."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from db.models.front import Front
from db.models.job import Job
from jobs import lifecycle, recording
from tests.api.conftest import Who
from tests.api.test_searches import order

SPACE = {
    "scale": {"at": "steps.task_arithmetic.scale", "low": 0, "high": 2},
    "a": {"at": "sources.a.weight", "low": 0, "high": 1},
}
OBJECTIVES = [{"set": "texts"}, {"set": "texts", "metric": "perplexity", "goal": "max"}]
VOLUME = {"value": 0.5, "reference": [-4.0, 0.0]}


def point(scale: float, values: list[float], number: int | None = None) -> dict[str, Any]:
    said = {"point": {"scale": scale, "a": 0.5}, "values": values}
    return said if number is None else {"number": number, **said}


MEASURED = [point(0.0, [-3.0, 9.0], 0), point(0.5, [-2.2, 6.0], 4), point(1.0, [-2.0, 1.0], 7)]
PREDICTED = [point(0.25, [-2.6, 8.0]), point(0.75, [-2.1, 4.0])]


@pytest.fixture(autouse=True)
def texts(model_root: Path) -> None:
    (model_root / "texts.jsonl").write_text('{"text": "to be or not to be"}\n' * 4)


def ordered(api: TestClient, **search: Any) -> str:
    wanted = {"method": "map", "settings": {}, "space": SPACE, "objectives": OBJECTIVES, **search}
    answer = api.post("/v1/jobs", json=order(wanted))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def done(
    sessions: sessionmaker[Session], job_id: str, *, kept: bool = True, front: list[Any] = MEASURED
) -> None:
    """Ends the search as its worker would; not ``kept``, as one of an earlier version would have."""
    with sessions.begin() as session:
        job = lifecycle.claim(session, job_id, "worker", 60)
        assert job is not None
        recipe = {**job.recipe, "sources": [dict(each) for each in job.recipe["sources"]]}
        recipe["sources"][0]["weight"] = 1.0
        body = {
            "recipe": recipe,
            "measured": front,
            "measured_total": 5,
            "predicted": PREDICTED,
            "hypervolume": VOLUME,
        }
        if kept:
            recording.record_front(session, lifecycle.fence_of(job), body)
        told = [{**each, "recipe": {}} for each in front]
        found = {
            "best": MEASURED[1],
            "front": told,
            "hypervolume": VOLUME,
            "ended": "done",
            "folder": "/gone",
        }
        lifecycle.succeed(session, lifecycle.fence_of(job), found)


@pytest.fixture
def ended(api: TestClient, sessions: sessionmaker[Session]) -> str:
    job_id = ordered(api)
    done(sessions, job_id)
    return job_id


def test_a_front_tells_what_was_measured_and_what_was_predicted(api: TestClient, ended: str) -> None:
    answer = api.get(f"/v1/jobs/{ended}/front")
    assert answer.status_code == 200, answer.text
    front = answer.json()
    assert [(each["place"], each["kind"], each["number"]) for each in front["data"]] == [
        (0, "measured", 0), (1, "measured", 4), (2, "measured", 7),
        (3, "predicted", None), (4, "predicted", None),
    ]  # fmt: skip
    assert front["data"][4]["values"] == [-2.1, 4.0] and front["data"][4]["point"]["scale"] == 0.75
    steps = [each["recipe"]["steps"][0]["scale"] for each in front["data"]]
    assert steps == [0.0, 0.5, 1.0, 0.25, 0.75]
    assert front["data"][4]["recipe"]["sources"][0]["weight"] == 0.5
    assert (front["measured_total"], front["hypervolume"], front["chosen"]) == (5, VOLUME, None)
    assert [each["metric"] for each in front["objectives"]] == [None, "perplexity"]


def test_a_preference_picks_a_point_of_a_finished_front_and_says_why(api: TestClient, ended: str) -> None:
    chosen = api.get(f"/v1/jobs/{ended}/front?preference=2,1").json()["chosen"]
    assert (chosen["place"], chosen["number"], chosen["among"]) == (1, 4, "measured")
    assert chosen["scaled"] == pytest.approx([0.8, 0.625]) and chosen["preference"] == [2.0, 1.0]
    assert chosen["score"] == pytest.approx((2 * 0.8 + 0.625) / 3)
    assert "Of 3 measured points" in chosen["why"] and "2:1" in chosen["why"]
    assert api.get(f"/v1/jobs/{ended}/front?preference=0,1").json()["chosen"]["number"] == 0
    guess = api.get(f"/v1/jobs/{ended}/front?preference=1,0&among=predicted").json()["chosen"]
    assert (guess["place"], guess["kind"], guess["recipe"]["steps"][0]["scale"]) == (4, "predicted", 0.75)


@pytest.mark.parametrize(
    ("query", "pointer", "said"),
    [
        ("preference=2", "/preference", "2 here (texts, texts perplexity); it has 1"),
        ("preference=1,2,3", "/preference", "it has 3"),
        ("preference=1,-1", "/preference", "-1 is no say"),
        ("preference=0,0", "/preference", "one number above 0"),
        ("preference=1,nan", "/preference", "nan is no say"),
        ("preference=1,lots", "/preference", "'lots' is no number"),
        ("preference=", "/preference", "is no number"),
        ("among=all", "/among", "measured"),
    ],
)
def test_a_preference_that_says_nothing_is_a_problem_that_names_it(
    api: TestClient, ended: str, query: str, pointer: str, said: str
) -> None:
    answer = api.get(f"/v1/jobs/{ended}/front?{query}")
    assert answer.status_code == 422 and said in answer.text, answer.text
    assert [(each["in"], each["pointer"]) for each in answer.json()["errors"]] == [("query", pointer)]


@pytest.mark.parametrize(("place", "scale", "trial"), [(1, 0.5, {"trial": "4"}), (4, 0.75, {})])
def test_any_point_becomes_a_merge_measured_or_predicted(
    api: TestClient, ended: str, place: int, scale: float, trial: dict[str, str]
) -> None:
    answer = api.post(f"/v1/jobs/{ended}/front/{place}/merge", json={"output": {"repo": "acme/best"}})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["kind"] == "merge" and job["output"]["repo"] == "acme/best"
    assert job["recipe"]["steps"] == [{"method": "task_arithmetic", "scale": scale}]
    assert job["recipe"]["sources"][0]["weight"] == 0.5
    assert job["metadata"] == {"search": ended, "front": str(place), **trial}


def test_the_same_key_makes_one_merge(api: TestClient, ended: str, sessions: sessionmaker[Session]) -> None:
    path, key = f"/v1/jobs/{ended}/front/4/merge", {"Idempotency-Key": "once"}
    first, again = (api.post(path, json={}, headers=key) for _ in range(2))
    assert first.json()["id"] == again.json()["id"] and again.headers["idempotent-replayed"] == "true"
    other = api.post(f"/v1/jobs/{ended}/front/3/merge", json={}, headers=key)
    assert other.status_code == 422 and other.json()["code"] == "idempotency_mismatch"
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Job).where(Job.kind == "merge")) == 1


def test_a_job_without_a_front_says_why(api: TestClient, sessions: sessionmaker[Session]) -> None:
    merge = api.post("/v1/jobs", json={"recipe": order()["recipe"]}).json()["id"]
    waiting, single = (
        ordered(api),
        ordered(api, method="grid", settings={"levels": 2}, objectives=[OBJECTIVES[0]]),
    )
    done(sessions, single, kept=False, front=[])
    for job_id, said in (
        (merge, "is a merge, not a search"),
        (waiting, "is queued and has no front"),
        (single, "looked for one best point with grid and has no front"),
    ):
        for answer in (
            api.get(f"/v1/jobs/{job_id}/front"),
            api.post(f"/v1/jobs/{job_id}/front/0/merge", json={}),
        ):
            assert answer.status_code == 409 and answer.json()["code"] == "illegal_state", answer.text
            assert said in answer.json()["detail"]


def test_what_is_not_there_is_not_merged(api: TestClient, ended: str, bert: Who) -> None:
    assert api.get("/v1/jobs/job_none/front").status_code == 404
    for place in ("5", "-1", "x"):
        assert api.post(f"/v1/jobs/{ended}/front/{place}/merge", json={}).status_code in (404, 422)
    assert "no point of this front '5'" in api.post(f"/v1/jobs/{ended}/front/5/merge", json={}).text
    for answer in (
        api.get(f"/v1/jobs/{ended}/front", headers=bert.headers),
        api.post(f"/v1/jobs/{ended}/front/0/merge", json={}, headers=bert.headers),
    ):
        assert answer.status_code == 404, "what belongs to another tenant does not exist"


def test_fronts_of_searches_before_they_were_kept_are_told_from_the_result(
    api: TestClient, sessions: sessionmaker[Session]
) -> None:
    job_id = ordered(api)
    done(sessions, job_id, kept=False)
    front = api.get(f"/v1/jobs/{job_id}/front?preference=1,0").json()
    assert [each["number"] for each in front["data"]] == [0, 4, 7] and front["chosen"]["number"] == 7
    merged = api.post(f"/v1/jobs/{job_id}/front/1/merge", json={}).json()
    assert merged["recipe"]["steps"][0]["scale"] == 0.5


def test_a_front_goes_with_its_job(api: TestClient, ended: str, sessions: sessionmaker[Session]) -> None:
    assert api.delete(f"/v1/jobs/{ended}").status_code == 204
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Front)) == 0
