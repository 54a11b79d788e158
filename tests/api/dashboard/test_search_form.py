"""A search ordered from the browser: the form becomes a job, and what is wrong is said at its field."""

import re

import pytest

from api.dashboard.search import input_of
from db import jobs
from tests.api.dashboard.conftest import Site


def filled(site: Site, **changes: str) -> dict[str, str]:
    (site.models / "texts.jsonl").write_text('{"text": "to be or not to be"}\n')
    one, other = site.models / "expert1", site.models / "expert2"
    recipe = f"base: {site.models / 'base'}\nsources: [{{id: a, model: {one}}}, {{id: b, model: {other}}}]\n"
    form = {
        "recipe": recipe + "steps: [ties]\n",
        "space": "a: {at: sources.a.weight, low: 0, high: 1}\nd: {at: steps.ties.density, values: [0.1, 1]}",
        "method": "tpe",
        "settings": "startup: 4, batch: 2",
        "evaluations": "12",
        "workers": "3",
        "halving": "on",
        "evaluate-0-name": "texts",
        "evaluate-0-kind": "perplexity",
        "evaluate-0-where": str(site.models / "texts.jsonl"),
        "action": "submit",
    }
    return form | {name.replace("__", "-"): value for name, value in changes.items()}


def test_a_form_becomes_a_search_with_its_page(site: Site) -> None:
    assert "tpe: Tree-structured" in site.sign_in().get("/jobs/search").text
    answer = site.post("/jobs/search", None, **filled(site))
    assert answer.status_code == 303, answer.text
    job_id = answer.headers["location"].removeprefix("/jobs/")
    with site.begin() as session:
        job = jobs.of_tenant(session, site.caller.tenant_id, job_id)
        assert job is not None and job.kind == "search" and job.plan is not None
        search = job.spec["search"]
        assert job.spec["workers"] == 3 and search["settings"] == {"startup": 4, "batch": 2}
        assert search["budget"]["evaluations"] == 12 and search["halving"]["factor"] == 2
        assert [each["set"] for each in search["objectives"]] == ["texts"]
        assert "preference" not in search or search["preference"] is None
    assert site.get(f"/jobs/{job_id}").status_code == 200


def test_what_is_wanted_of_a_front_and_the_seed_go_with_the_order(site: Site) -> None:
    wanted = {"preference": "2, 1", "reference": "[-9.5 -3]", "seed": "7"}
    form = filled(site.sign_in(), objectives="texts\ntexts perplexity", **wanted)
    answer = site.post("/jobs/search", None, **form)
    assert answer.status_code == 303, answer.text
    with site.begin() as session:
        job = jobs.of_tenant(
            session, site.caller.tenant_id, answer.headers["location"].removeprefix("/jobs/")
        )
        assert job is not None
        search = job.spec["search"]
        assert (search["preference"], search["reference"], search["seed"]) == ([2, 1], [-9.5, -3], 7)
    again = site.post("/jobs/search", None, **form | {"action": "add"}).text
    for name, value in wanted.items():
        assert re.search(rf'id="{name}"[^>]*value="{re.escape(value)}"', again), name
        assert f'id="{name}-hint"' in again


def test_an_objective_may_name_a_member_of_a_bundle(site: Site) -> None:
    form = filled(site.sign_in(), objectives="texts perplexity @a\n\ntexts @b")
    bundle = {"recipe": form["recipe"] + "result: {form: bundle, kind: tall}\n"}
    answer = site.post("/jobs/search", None, **form | bundle)
    assert answer.status_code == 303, answer.text
    with site.begin() as session:
        job = jobs.of_tenant(
            session, site.caller.tenant_id, answer.headers["location"].removeprefix("/jobs/")
        )
        assert job is not None
        asked = [(each["set"], each["metric"], each["member"]) for each in job.spec["search"]["objectives"]]
        assert asked == [("texts", "perplexity", "a"), ("texts", None, "b")]


@pytest.mark.parametrize(
    ("field", "typed", "said"),
    [
        ("recipe", "", "Write a recipe."),
        ("recipe", "base: x\nsteps: [ties]", "Field required"),
        ("space", "", "the space is empty"),
        ("space", "a: [", "Write one dimension a line"),
        ("space", "a: {at: sources.z.weight, low: 0, high: 1}", "&#39;z&#39; among the sources is not there"),
        ("space", "a: {at: sources.a.weight, low: 2, high: 1}", "low must be below high"),
        ("space", "a: {at: steps.ties.densty, low: 0, high: 1}", "densty"),
        ("method", "hill", "there is no search method"),
        ("settings", "startup: 0", "settings.startup"),
        ("settings", "startup: [", "Write name: value"),
        ("evaluations", "many", "is not a whole number"),
        ("evaluations", "0", "greater than or equal to 1"),
        ("evaluations", "9" * 5000, "is not a whole number"),
        ("workers", "17", "less than or equal to 16"),
        ("seed", "one", "is not a whole number"),
        ("seed", "2147483648", "less than 2147483648"),
        ("preference", "much", "&#39;much&#39; is not a number"),
        ("preference", "2, 1", "preference needs one number an objective"),
        ("preference", "-1", "greater than or equal to 0"),
        ("reference", "-0.9 low", "&#39;low&#39; is not a number"),
        ("reference", "1, 2", "reference needs one score an objective"),
        ("reference", "nan", "finite number"),
        ("objectives", "other", "an objective names the set"),
        ("objectives", "texts accuracy", "does not measure"),
        ("objectives", "texts perplexity more", "is no objective"),
        ("objectives", "@a", "is no objective"),
        ("objectives", "texts @a", "only a bundle has members"),
        ("evaluate-0-where", "", "nothing to search by"),
        ("evaluate-0-settings", "windw: 3", "windw"),
    ],
)
def test_what_cannot_work_is_said_at_its_field(site: Site, field: str, typed: str, said: str) -> None:
    form = filled(site.sign_in()) | {field: typed}
    answer = site.post("/jobs/search", None, **({**form, "objectives": "texts"} | {field: typed}))
    assert answer.status_code == 422
    found = re.search(rf'id="{field}-wrong">([^<]*)<', answer.text)
    assert found is not None and said in found[1], answer.text
    assert f'aria-describedby="{field}' in answer.text


def test_another_set_is_added_and_nothing_is_lost(site: Site) -> None:
    answer = site.sign_in().post("/jobs/search", None, **filled(site, action="add"))
    assert answer.status_code == 200 and 'name="evaluate-1-where"' in answer.text
    assert "steps.ties.density" in answer.text and 'value="startup: 4, batch: 2"' in answer.text


def test_where_an_error_belongs() -> None:
    assert input_of("/search/space/a/at") == "space" and input_of("/steps/0/density") == "recipe"
    assert input_of("/evaluate/sets/1/data/file") == "evaluate-1-where" and input_of("/metadata") == ""
