"""Scoring from the browser: a form becomes a job of kind score, its sets keep their settings."""

from api.dashboard.draft import Draft
from api.dashboard.score import models_of
from db import jobs
from jobs.request import read_order
from tests.api.dashboard.conftest import Site

SET = {
    "evaluate-0-kind": "choice",
    "evaluate-0-where": "ds_01",
    "evaluate-0-settings": "normalise: none",
}


def filled(site: Site, **changes: str) -> dict[str, str]:
    where = str(site.models / "base" / "config.json")
    models = f"base = {site.models / 'base'}\n{site.models / 'expert1'}\n"
    form = {"models": models, "evaluate-0-where": where, "evaluate-0-settings": "form: stream, window: 64"}
    return form | {name.replace("__", "-"): value for name, value in changes.items()}


def test_a_form_becomes_a_score_job_with_its_page(site: Site) -> None:
    assert 'name="models"' in site.sign_in().get("/jobs/score").text
    answer = site.post("/jobs/score", action="submit", **filled(site))
    assert answer.status_code == 303, answer.text
    job_id = answer.headers["location"].removeprefix("/jobs/")
    with site.begin() as session:
        job = jobs.of_tenant(session, site.caller.tenant_id, job_id)
        assert job is not None and job.kind == "score" and job.plan is not None
        assert [each["id"] for each in job.recipe["models"]] == ["base", "m1"]
        assert job.spec["evaluate"]["sets"][0]["settings"] == {"form": "stream", "window": 64}
    shown = site.get(f"/jobs/{job_id}").text
    assert "expert1" in shown and '"kind": "score"' in shown.replace("&#34;", '"')
    assert "/jobs/new?from=" not in shown, "there is no recipe to start another merge from"
    assert site.get(f"/jobs/new?from={job_id}").status_code == 200


def test_what_cannot_work_is_shown_and_kept(site: Site) -> None:
    site.sign_in()
    answer = site.post("/jobs/score", action="submit", **filled(site, evaluate__0__settings="windw: 3"))
    assert answer.status_code == 422 and "settings.windw" in answer.text and "windw: 3" in answer.text
    answer = site.post("/jobs/score", action="submit", **filled(site, evaluate__0__where=""))
    assert answer.status_code == 422 and "evaluate.sets" in answer.text
    answer = site.post("/jobs/score", action="submit", **filled(site, evaluate__0__settings="["))
    assert answer.status_code == 422
    assert 'id="evaluate-0-settings-wrong">Write name: value, name: value.' in answer.text
    answer = site.post("/jobs/score", action="add:evaluate", **filled(site))
    assert answer.status_code == 200 and 'name="evaluate-1-where"' in answer.text


def test_models_are_typed_one_a_line() -> None:
    assert models_of("org/a\n\n b = org/b@v1 ") == ["org/a", {"id": "b", "model": "org/b@v1"}]


def test_settings_come_back_into_the_form_as_they_were_typed() -> None:
    draft = Draft.from_form(SET | {"sources-0-model": "a/b", "sources-1-model": "a/c", "parents": "on"})
    wishes = draft.wishes()
    assert wishes["evaluate"]["sets"][0]["settings"] == {"normalise": "none"}
    again = Draft.from_order({"recipe": {}, "evaluate": wishes["evaluate"]})
    assert again.evaluate[0]["settings"] == "normalise: none" and again.evaluate[0]["where"] == "ds_01"
    broken = Draft.from_form(SET | {"evaluate-0-settings": "[", "parents": "on"})
    broken.wishes()
    assert "evaluate-0-settings" in broken.wrong


def test_a_job_s_order_is_read_again_whatever_its_kind() -> None:
    order = {"kind": "score", "models": ["a/b"], "evaluate": {"sets": [_texts()]}}
    assert read_order(read_order(order).spec()) == read_order(order)


def _texts() -> dict[str, object]:
    return {"name": "t", "kind": "perplexity", "data": {"dataset": "ds_1"}}
