"""A search ordered from the browser: the form becomes a job, and what is wrong is said at its field."""

import re
from typing import Any

import pytest

from api.dashboard.search import Wanted
from db import jobs
from jobs.request import read_order
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
    again = site.post("/jobs/search", None, **form | {"action": "add:evaluate"}).text
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


def test_the_plan_of_a_search_is_shown_before_anything_is_started(site: Site) -> None:
    plan = site.sign_in().post("/jobs/search/plan", None, **filled(site)).text
    assert "This can work." in plan and "<html" not in plan and "Result" not in plan
    for fact in ("12 at most", "Numbers that vary", "One merge", "Peak memory", "Download", "Disk"):
        assert fact in plan, fact
    assert "Candidates are made and scored in memory; none is written." in plan
    assert "Written for each" not in plan
    bundle = filled(site)["recipe"] + "result: {form: bundle, kind: tall}\n"
    plan = site.post("/jobs/search/plan", None, **filled(site, recipe=bundle)).text
    assert "Candidates are written, one at a time: its result is a bundle." in plan
    assert "Written for each" in plan
    with site.begin() as session:
        assert jobs.quota(session, site.caller.tenant_id) == (None, 0)


def test_nothing_is_planned_before_there_is_a_recipe(site: Site) -> None:
    plan = site.sign_in().post("/jobs/search/plan", None, **filled(site, recipe=""))
    assert plan.status_code == 200 and "Name the models" in plan.text


def test_what_cannot_work_is_said_in_the_plan_with_the_way_to_its_field(site: Site) -> None:
    form = filled(site.sign_in(), seed="one", preference="2, 1")
    unread = site.post("/jobs/search/plan", None, **form).text
    assert 'data-input="seed"' in unread and 'href="#seed"' in unread
    assert "&#39;one&#39; is not a whole number" in unread
    page = site.post("/jobs/search", None, **form | {"seed": "1", "action": "plan"}).text
    assert 'data-input="preference"' in page and 'id="preference-wrong"' in page
    assert "<h2>Plan</h2>" in page and 'value="startup: 4, batch: 2"' in page
    stranger = form["recipe"].replace("expert2", "stranger")
    plan = site.post("/jobs/search/plan", None, **form | {"recipe": stranger, "preference": "", "seed": ""})
    assert "Error:" in plan.text and "<code>shape_mismatch</code> · <code>b</code>" in plan.text


def test_a_built_in_task_of_lm_eval_needs_no_data_and_an_objective_may_say_its_goal(site: Site) -> None:
    form = filled(site.sign_in(), objectives="arc acc_norm\narc strictly max\ntexts perplexity min")
    more = {"name": "arc", "kind": "lm_eval", "where": "", "settings": "task: arc_easy, num_fewshot: 5"}
    answer = site.post("/jobs/search", None, **form | {f"evaluate-1-{at}": said for at, said in more.items()})
    assert answer.status_code == 303, answer.text
    with site.begin() as session:
        job = jobs.of_tenant(
            session, site.caller.tenant_id, answer.headers["location"].removeprefix("/jobs/")
        )
        assert job is not None
        asked = [(each["metric"], each["goal"]) for each in job.spec["search"]["objectives"]]
        assert asked == [("acc_norm", None), ("strictly", "max"), ("perplexity", "min")]
        own = job.spec["evaluate"]["sets"][1]
        assert own["settings"] == {"task": "arc_easy", "num_fewshot": 5} and own["data"] is None
    assert 'value="lm_eval"' in site.get("/jobs/search").text


def test_what_a_task_of_lm_eval_leaves_open_is_said_at_the_objectives(site: Site) -> None:
    form = filled(site.sign_in(), objectives="arc") | {"evaluate-1-name": "arc", "evaluate-1-kind": "lm_eval"}
    answer = site.post("/jobs/search", None, **form | {"evaluate-1-settings": "task: arc_easy"})
    assert answer.status_code == 422
    found = re.search(r'id="objectives-wrong">([^<]*)<', answer.text)
    assert found is not None and "name the metric here" in found[1]


def test_a_task_of_lm_eval_is_an_objective_that_says_its_metric_and_its_goal(site: Site) -> None:
    task = {"evaluate-0-kind": "lm_eval", "evaluate-0-where": "", "evaluate-0-settings": "task: arc_easy"}
    order = Wanted.from_form(filled(site) | task | {"objectives": "texts acc max\ntexts min @a"}).body()
    assert order["evaluate"]["sets"] == [
        {"name": "texts", "kind": "lm_eval", "settings": {"task": "arc_easy"}},
    ]
    assert order["search"]["objectives"] == [
        {"set": "texts", "metric": "acc", "goal": "max"},
        {"set": "texts", "goal": "min", "member": "a"},
    ]
    assert '<option value="lm_eval">' in site.sign_in().get("/jobs/search").text


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
    answer = site.sign_in().post("/jobs/search", None, **filled(site, action="add:evaluate"))
    assert answer.status_code == 200 and 'name="evaluate-1-where"' in answer.text
    assert "steps.ties.density" in answer.text and 'value="startup: 4, batch: 2"' in answer.text
    form = filled(site, action="remove:evaluate:0") | {"evaluate-1-where": "ds_1", "evaluate-1-name": "more"}
    text = site.post("/jobs/search", {"HX-Request": "true"}, **form).text
    assert text.lstrip().startswith('<form id="draft"') and "<html" not in text
    assert 'value="more"' in text and 'name="evaluate-1-where"' not in text


def test_where_an_error_belongs() -> None:
    input_of = Wanted().input_of
    assert input_of("/search/space/a/at") == "space" and input_of("/steps/0/density") == "recipe"
    assert input_of("/result/form") == "recipe" and input_of("/search/seed") == "seed"
    assert input_of("/evaluate/sets/1/data/file") == "evaluate-1-where" and input_of("/metadata") == ""


def test_an_earlier_search_fills_in_the_form_and_nothing_of_it_is_lost() -> None:
    first: dict[str, Any] = {
        "kind": "search",
        "recipe": {"base": "a/b", "sources": [{"id": "x", "model": "a/c"}], "steps": [{"method": "ties"}]},
        "search": {
            "method": "nsga",
            "settings": {"population": 4},
            "space": {"x": {"at": "sources.x.weight", "low": 0.0, "high": 1.0}},
            "objectives": [{"set": "texts"}, {"set": "quiz", "metric": "accuracy", "goal": "max"}],
            "budget": {"evaluations": 60, "seconds": 600.0, "gpu_seconds": 3.5},
            "halving": {"begin": 0.5},
            "preference": [2.0, 1.0],
            "seed": 3,
        },
        "evaluate": {
            "sets": [
                {"name": "texts", "kind": "perplexity", "data": {"path": "/t.jsonl"}},
                {"name": "quiz", "kind": "choice", "data": {"hub": "a/quiz", "file": "q.jsonl"}, "limit": 9},
            ]
        },
        "workers": 2,
        "metadata": {"commit": "12e4567"},
        "webhook": {"url": "https://example.org", "events": ["search.failed"]},
    }
    weighted = [{"set": "texts", "weight": 2.0}, {"set": "quiz"}]
    texts, quiz = first["evaluate"]["sets"]
    spaced = {"sets": [{**texts, "data": {"hub": "a/b", "file": "two words"}}, quiz]}
    for search, evaluate in (({}, {}), ({"objectives": weighted}, spaced)):
        order = first | {"search": first["search"] | search, "evaluate": first["evaluate"] | evaluate}
        wanted = Wanted.from_order(order)
        assert read_order(wanted.body()) == read_order(order), wanted.wrong
        assert "space" not in wanted.sets.rest and wanted.wrong == {}


@pytest.mark.parametrize("rest", ["evaluate: {sets: 5}", "evaluate: {sets: [1]}", "search: 1", "evaluate: "])
def test_whatever_is_said_besides_the_fields_is_refused_in_words(site: Site, rest: str) -> None:
    form = filled(site.sign_in(), rest=rest) | {"evaluate-0-where": ""}
    assert site.post("/jobs/search", None, **form).status_code == 422


def test_another_search_is_begun_with_the_order_of_the_first(site: Site) -> None:
    made = site.sign_in().post("/jobs/search", None, **filled(site)).headers["location"]
    onward = site.get("/jobs/new?from=" + made.removeprefix("/jobs/"))
    assert onward.headers["location"] == "/jobs/search?from=" + made.removeprefix("/jobs/")
    text = site.get(onward.headers["location"]).text
    assert "steps.ties.density" in text and "startup: 4, batch: 2" in text
