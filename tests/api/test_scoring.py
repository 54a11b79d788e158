"""Scoring over HTTP: orders of kind score, sets with settings, single items side by side."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from db import scores as known_scores
from jobs import lifecycle, recording
from tests.api.conftest import ORDER, Who

SET: dict[str, Any] = {"name": "texts", "kind": "perplexity", "data": {"path": "base/config.json"}}
HARNESS = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q|upper}}",
    "doc_to_choice": ["a", "b"],
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}],
}
SCORE: dict[str, Any] = {
    "kind": "score",
    "models": ["base", {"id": "b", "model": "expert1"}],
    "evaluate": {"sets": [SET]},
}


def refusal(api: TestClient, **changes: Any) -> tuple[str, str]:
    answer = api.post("/v1/jobs", json={**SCORE, **changes})
    assert answer.status_code == 422, answer.text
    error = answer.json()["errors"][0]
    return error["pointer"], error["detail"]


def test_a_score_job_is_planned_from_headers_and_listed_by_its_kind(api: TestClient) -> None:
    answer = api.post("/v1/jobs", json=SCORE)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["kind"], job["method"], job["phase"]) == ("score", None, None)
    assert [each["id"] for each in job["recipe"]["models"]] == ["m0", "b"]
    assert job["plan"]["estimate"]["output_bytes"] == 0 and job["plan"]["models"]["b"]["parameters"] > 0
    assert job["plan"]["sets"][0]["name"] == "texts"
    api.post("/v1/jobs", json=ORDER)
    listed = [each["kind"] for each in api.get("/v1/jobs", params={"kind": "score"}).json()["data"]]
    assert listed == ["score"]
    assert api.get(f"/jobs/{job['id']}").status_code in (200, 303)


def test_a_plan_of_a_score_job_records_nothing(api: TestClient) -> None:
    plan = api.post("/v1/plans", json=SCORE)
    assert plan.status_code == 200 and plan.json()["plan"]["queue"] == "cpu", plan.text
    assert api.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("changes", "pointer", "said"),
    [
        ({"kind": "sing"}, "/kind", "there are merge"),
        ({"models": []}, "/models", "at least 1"),
        ({"models": ["base", {"id": "m0", "model": "expert1"}]}, "/models/1/id", "same id, 'm0'"),
        ({"against": "c"}, "/against", "none of the models: m0, b"),
        ({"evaluate": {"sets": []}}, "/evaluate/sets", "evaluate.sets is empty"),
        ({"evaluate": {"sets": [SET], "margin": 0.1}}, "/evaluate/margin", "nothing is published"),
        ({"evaluate": {"sets": [SET | {"name": "check"}]}}, "/evaluate/sets/0/name", "check of a result"),
        ({"evaluate": {"sets": [SET | {"kind": "poetry"}]}}, "/evaluate/sets/0/kind", "perplexity"),
        (
            {"evaluate": {"sets": [SET | {"settings": {"windw": 3}}]}},
            "/evaluate/sets/0/settings/windw",
            "settings.windw of a perplexity set: there is no such setting; there are form, window",
        ),
        (
            {"evaluate": {"sets": [SET | {"kind": "zero_shot"}]}},
            "/evaluate/sets/0/settings/classes",
            "settings.classes",
        ),
        (
            {"evaluate": {"sets": [SET | {"kind": "lm_eval", "settings": {"config": HARNESS}}]}},
            "/evaluate/sets/0/settings/config/doc_to_text",
            "only text and {{field}}",
        ),
        (
            {"evaluate": {"sets": [SET | {"kind": "lm_eval"}]}},
            "/evaluate/sets/0/settings",
            "settings.task or settings.config",
        ),
        ({"evaluate": {"sets": [SET | {"data": None}]}}, "/evaluate/sets/0/data", "needs data"),
        ({"evaluate": {"sets": [SET | {"kind": "classification"}]}}, "/evaluate/sets/0/kind", "head"),
        ({"models": ["base", "nowhere/../x"]}, "/models/1", "allowed"),
        ({"output": {"repo": "a/b"}}, "/output", "not permitted"),
    ],
)
def test_what_cannot_work_is_refused_at_its_place(
    api: TestClient, changes: dict[str, Any], pointer: str, said: str
) -> None:
    at, detail = refusal(api, **changes)
    assert at == pointer and said in detail


def test_a_model_that_is_wrong_is_told_once_and_in_our_own_words(api: TestClient) -> None:
    answer = api.post("/v1/jobs", json={**SCORE, "models": [{"id": "Base", "model": "base"}]}).json()
    assert [each["pointer"] for each in answer["errors"]] == ["/models/0/id"]
    answer = api.post("/v1/jobs", json={**SCORE, "against": "c"}).json()
    assert answer["errors"][0]["detail"].startswith("against names")


def test_a_margin_needs_the_parents_that_it_is_held_against(api: TestClient) -> None:
    evaluate = {"sets": [SET], "parents": False, "margin": 0.1}
    answer = api.post("/v1/jobs", json={**ORDER, "evaluate": evaluate})
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["pointer"]) == (422, "/evaluate/margin")
    assert "parents: false" in error["detail"]


def recorded(api: TestClient, sessions: sessionmaker[Session], tenant: str) -> str:
    """A running score job with two subjects' scores of five items."""
    job_id: str = api.post("/v1/jobs", json=SCORE).json()["id"]
    with sessions.begin() as session:
        claimed = lifecycle.claim(session, job_id, "worker", 60)
        assert claimed is not None
        rows = []
        for subject, shift in (("m0", 0.0), ("b", 0.5)):
            each = [place + shift for place in range(5)]
            told = {"task": "texts", "metric": "bits_per_byte", "per_example": each, "weights": None}
            known_scores.put(session, tenant, f"key-{subject}", [told], model="m", task="t")
            row = {"subject": subject, "metric": "bits_per_byte", "value": 2.0 + shift, "stderr": 0.1, "n": 5}
            rows.append(row | {"known_key": f"key-{subject}", "higher_is_better": False})
        rows[1]["differences"] = {"m0": {"value": 0.5, "low": 0.4, "high": 0.6, "clear": True}}
        facts = {"name": "texts", "kind": "perplexity", "task_sha256": "t", "scores": rows}
        recording.record_evaluation(session, lifecycle.fence_of(claimed), facts)
    return job_id


def test_single_items_are_paged_side_by_side(
    api: TestClient, anna: Who, bert: Who, sessions: sessionmaker[Session]
) -> None:
    job_id = recorded(api, sessions, anna.caller.tenant_id)
    here = f"/v1/jobs/{job_id}/evaluations"
    (found,) = api.get(here).json()["data"]
    assert found["task_sha256"] == "t"
    told = next(each for each in found["scores"] if each["subject"] == "b")
    assert told["differences"]["m0"]["clear"] is True and told["higher_is_better"] is False
    first = api.get(f"{here}/texts/examples", params={"limit": 3}).json()
    assert (first["metric"], first["total"], first["has_more"]) == ("bits_per_byte", 5, True)
    assert first["data"][1] == {"index": 1, "values": {"m0": 1.0, "b": 1.5}}
    rest = api.get(f"{here}/{found['id']}/examples", params={"after": 2}).json()
    assert [each["index"] for each in rest["data"]] == [3, 4] and rest["has_more"] is False
    assert api.get(f"{here}/texts/examples", params={"metric": "joy"}).status_code == 404
    assert api.get(f"{here}/other/examples").status_code == 404
    assert api.get(f"{here}/texts/examples", headers=bert.headers).status_code == 404


def test_the_page_of_a_score_job_shows_bars_and_differences(
    api: TestClient, anna: Who, sessions: sessionmaker[Session]
) -> None:
    job_id = recorded(api, sessions, anna.caller.tenant_id)
    api.post("/login", data={"key": anna.secret}, follow_redirects=False)
    page = api.get(f"/jobs/{job_id}")
    assert page.status_code == 200
    assert "texts: bits per byte" in page.text and 'class="whisker"' in page.text
    assert "b − m0" in page.text and "+0.4" in page.text and "Recipe" in page.text


def test_a_merge_s_evaluation_sets_must_fit_its_models(api: TestClient, model_root: Path) -> None:
    assert model_root.is_dir()
    sets = [SET | {"kind": "classification"}]
    answer = api.post("/v1/jobs", json={**ORDER, "evaluate": {"sets": sets}})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/evaluate/sets/0/kind"


def test_a_head_of_the_base_needs_a_base(api: TestClient) -> None:
    asked = {"classes": ["a", "b"], "head": "base"}
    sets = [SET | {"kind": "zero_shot", "settings": asked}]
    recipe = {"sources": ["expert1", "expert2"], "steps": [{"method": "linear"}]}
    answer = api.post("/v1/jobs", json={"recipe": recipe, "evaluate": {"sets": sets}})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/evaluate/sets/0/settings/head"
