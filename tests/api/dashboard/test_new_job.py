"""From an empty form to a queued job, without JavaScript."""

import json

import yaml

from db import jobs
from tests.api.dashboard.conftest import Site


def test_the_form_of_a_method_has_its_settings(site: Site) -> None:
    text = site.sign_in().get("/jobs/new?method=ties").text
    assert 'name="steps-0-density"' in text
    assert '<option value="ties" selected>' in text


def test_the_plan_is_shown_before_anything_is_started(site: Site) -> None:
    site.sign_in()
    text = site.post("/jobs/new/plan", **site.draft()).text
    assert "This can work." in text
    assert "Peak memory" in text and "Inputs, pinned" in text
    with site.begin() as session:
        assert jobs.quota(session, site.caller.tenant_id) == (None, 0)


def test_nothing_is_planned_while_no_model_is_named(site: Site) -> None:
    text = site.sign_in().post("/jobs/new/plan", **{"steps-0-method": "linear"}).text
    assert "Name the models" in text


def test_a_form_becomes_a_job_and_leads_to_its_page(site: Site) -> None:
    site.sign_in()
    answer = site.post("/jobs/new", action="submit", **site.draft(sources__0__weight="0.7"))
    assert answer.status_code == 303
    job_id = answer.headers["location"].removeprefix("/jobs/")
    with site.begin() as session:
        job = jobs.of_tenant(session, site.caller.tenant_id, job_id)
        assert job is not None and job.plan is not None
        assert (job.state, job.method) == ("queued", "task_arithmetic")
        assert job.recipe["sources"][0]["weight"] == 0.7
    assert job_id in site.get(f"/jobs/{job_id}").text


def test_a_merge_that_cannot_work_is_refused_with_every_reason(site: Site) -> None:
    site.sign_in()
    answer = site.post(
        "/jobs/new",
        action="submit",
        **site.draft(sources__1__model=str(site.models / "stranger"), steps__0__scale="-4"),
    )
    assert answer.status_code == 422
    assert "Error:" in answer.text
    with site.begin() as session:
        assert jobs.quota(session, site.caller.tenant_id) == (None, 0)


def test_a_wrong_setting_is_marked_at_its_field(site: Site) -> None:
    site.sign_in()
    draft = site.draft(steps__0__method="ties", steps__0__density="7", repo="not a repo")
    text = site.post("/jobs/new", action="submit", **draft).text
    assert 'id="repo-wrong"' in text
    text = site.post("/jobs/new", action="submit", **draft | {"repo": ""}).text
    assert 'id="steps-0-density-wrong"' in text
    text = site.post("/jobs/new", action="submit", **draft | {"steps-0-density": "some"}).text
    assert "&#39;some&#39; is not a number" in text


def test_what_was_typed_stays_when_a_row_is_added(site: Site) -> None:
    site.sign_in()
    text = site.post("/jobs/new", action="add:source", **site.draft(repo="acme/x")).text
    assert 'name="sources-2-model"' in text
    assert 'value="acme/x"' in text and "expert2" in text


def test_what_was_typed_stays_behind_the_yaml(site: Site) -> None:
    site.sign_in()
    text = site.post("/jobs/new", action="tab:yaml", **site.draft(steps__0__scale="0.7")).text
    assert f'<input type="hidden" name="sources-1-model" value="{site.models / "expert2"}">' in text
    assert '<input type="hidden" name="steps-0-scale" value="0.7">' in text


def test_a_yaml_that_no_form_can_show_stays_and_the_page_says_why(site: Site) -> None:
    site.sign_in()
    document = "sources: [a/b]\nsteps: [linear]\nresult: {form: adapter, rank: 2}"
    text = site.post("/jobs/new", action="tab:form", tab="yaml", document=document).text
    assert "The form has no fields for result; go on here." in text and "rank: 2}" in text
    text = site.post("/jobs/new", action="tab:form", tab="yaml", document=document[:31]).text
    assert 'name="sources-0-model" type="text" value="a/b"' in text


def test_nothing_of_a_job_is_lost_in_another_from_it(site: Site) -> None:
    site.sign_in()
    more = "metadata: {team: nlp}\noutput: {revision: next}\npriority: 3"
    made = site.post("/jobs/new", action="submit", **site.draft(repo="acme/x", rest=more))
    text = site.get("/jobs/new?from=" + made.headers["location"].removeprefix("/jobs/")).text
    rest = text.split('name="rest"')[1].split("</textarea>")[0].split(">", 1)[1]
    assert yaml.safe_load(rest) == yaml.safe_load(more)
    for odd in ('metadata: {a: "\\0"}', 'metadata: {a: "\\ud800"}'):
        assert site.post("/jobs/new", action="submit", **site.draft(rest=odd)).status_code == 400
    refused = site.post("/jobs/new", action="submit", **site.draft(rest="priority: 1000"))
    assert refused.status_code == 422 and 'id="rest-wrong"' in refused.text


def test_a_page_with_javascript_gets_the_form_alone(site: Site) -> None:
    site.sign_in()
    text = site.post("/jobs/new", {"HX-Request": "true"}, action="add:source", **site.draft()).text
    assert text.lstrip().startswith('<form id="draft"') and "<html" not in text


def test_a_recipe_or_a_mergekit_configuration_can_be_pasted(site: Site) -> None:
    site.sign_in()
    config = {
        "merge_method": "ties",
        "base_model": str(site.models / "base"),
        "models": [
            {"model": str(site.models / "expert1"), "parameters": {"weight": 0.5, "density": 0.4}},
            {"model": str(site.models / "expert2"), "parameters": {"weight": 0.5, "density": 0.4}},
        ],
        "dtype": "bfloat16",
    }
    draft = {"tab": "yaml", "document": yaml.safe_dump(config), "private": "on", "publish": "checked"}
    text = site.post("/jobs/new/plan", **draft).text
    assert "This can work." in text and "Translated from mergekit" in text
    answer = site.post("/jobs/new", action="submit", **draft)
    assert answer.status_code == 303
    again = site.get("/jobs/new?from=" + answer.headers["location"].removeprefix("/jobs/")).text
    assert "method: ties" in again


def test_several_documents_of_mergekit_are_planned_and_submitted_with_their_stages(site: Site) -> None:
    site.sign_in()
    base, *experts = (str(site.models / name) for name in ("base", "expert1", "expert2"))
    models = [{"model": each} for each in experts]
    mean = {"name": "mean", "merge_method": "linear", "models": models}
    last = {"merge_method": "task_arithmetic", "base_model": base, "models": [{"model": "mean"}]}
    weighted = {"parameters": {"weight": 1.0}}
    document = yaml.safe_dump_all([mean | weighted, last | weighted])
    draft = {"tab": "yaml", "document": document, "private": "on", "publish": "checked"}
    assert "mean (linear, made as it is read)" in site.post("/jobs/new/plan", **draft).text
    submitted = site.post("/jobs/new", action="submit", **draft)
    job = submitted.headers["location"]
    assert "mean (linear, made as it is read)" in site.get(job).text
    again = site.get("/jobs/new?from=" + job.removeprefix("/jobs/")).text
    assert "stage:mean" in again and "stages:" in again


def test_a_document_that_is_no_yaml_is_refused_in_words(site: Site) -> None:
    site.sign_in()
    for document in ("a: [", "- 1", "steps: [{method: tise}]\nsources: [a/b]"):
        answer = site.post("/jobs/new", action="submit", tab="yaml", document=document, publish="checked")
        assert answer.status_code == 422, document
        assert "Error:" in answer.text
    assert "did you mean" in answer.text


def test_the_same_call_for_scripts_makes_the_same_job(site: Site) -> None:
    site.sign_in()
    made = site.post("/jobs/new", action="submit", **site.draft(sources__0__weight="0.7"))
    job_id = made.headers["location"].removeprefix("/jobs/")
    text = site.get(f"/jobs/{job_id}").text
    code = text.split('id="call-2">')[1].split("</pre>")[0].replace("&#39;", "'").replace("&#34;", '"')
    body = json.loads(code.split("r'''")[1].split("'''")[0])
    headers = {"Authorization": f"Bearer {site.key}"}
    again = site.client.post("/v1/jobs", json=body, headers=headers).json()
    with site.begin() as session:
        first = jobs.get(session, job_id)
        assert first is not None and first.recipe_sha256 == again["recipe_sha256"]
