"""The page of a search: a picture, the best candidates, and a button that merges one."""

from typing import Any

from api.dashboard.searches import picture
from db import trials
from db.models.trial import Trial
from jobs import lifecycle
from jobs.request import read_order
from jobs.submit import submit
from tests.api.dashboard.conftest import Site
from tests.factories import make_rules


def searched(site: Site, **search: Any) -> str:
    (site.models / "texts.jsonl").write_text('{"text": "to be or not to be"}\n')
    order = {
        "kind": "search",
        "recipe": {
            "base": str(site.models / "base"),
            "sources": [{"id": "a", "model": str(site.models / "expert1")}],
            "steps": ["task_arithmetic"],
        },
        "search": {
            "method": "grid",
            "settings": {"levels": 3},
            "space": {"scale": {"at": "steps.task_arithmetic.scale", "low": 0, "high": 1}},
            "objectives": [{"set": "texts"}],
            **search,
        },
        "evaluate": {"sets": [{"name": "texts", "kind": "perplexity", "data": {"path": "texts.jsonl"}}]},
    }
    with site.begin() as session:
        rules = make_rules(model_roots=[site.models])
        job_id = submit(session, site.caller, read_order(order), None, rules).id
    with site.begin() as session:
        job = lifecycle.claim(session, job_id, "worker", 60)
        assert job is not None
        fence = lifecycle.fence_of(job)
        lifecycle.record_plan(session, fence, {"queue": "cpu", "findings": [], "inputs": []}, "cpu")
        for number, scale in enumerate((0.0, 0.5, 1.0)):
            told = {"values": [-3.0 + scale], "share": 1.0, "seconds": 0.25}
            facts = {"key": str(number), "share": 1.0, "number": number, "point": {"scale": scale}}
            trials.put(session, job.root_id, {**facts, "told": told, "elapsed": float(number)})
        best = {"number": 2, "point": {"scale": 1.0}, "values": [-2.0]}
        lifecycle.succeed(session, fence, {"best": best, "front": [], "ended": "seconds", "folder": "/kept"})
    return job_id


def test_the_page_shows_what_was_tried_and_merges_a_point(site: Site) -> None:
    job_id = searched(site.sign_in())
    page = site.get(f"/jobs/{job_id}").text
    assert page.count("<circle") == 3 and page.count('class="own"') == 1 and "<polyline" in page
    assert "3 tried" in page and "ended by its budget of seconds" in page
    assert page.index("Merge trial 2") < page.index("Merge trial 1") < page.index("Merge trial 0")
    assert "Searching" in page and "Merging" not in page
    answer = site.post(f"/jobs/{job_id}/trials/1/merge", repo="acme/half")
    assert answer.status_code == 303, answer.text
    merge = site.get(answer.headers["location"]).text
    assert "scale: 0.5" in merge and "acme/half" in merge


def test_two_objectives_are_drawn_against_each_other() -> None:
    rows = [Trial(number=n, point={"x": n}, share=1.0, told={"values": [n, 2.0 - n]}) for n in (0, 1, 2)]
    drawn = picture(rows, ["a", "b"], {"x": {"low": 0, "high": 2}}, 1, {0, 1})
    assert drawn is not None and (drawn["across"], drawn["up"]) == ("a", "b") and not drawn["curve"]
    assert [dot["own"] for dot in drawn["dots"]] == [True, True, False]
    xs, ys = [dot["x"] for dot in drawn["dots"]], [dot["y"] for dot in drawn["dots"]]
    assert xs == sorted(xs) and ys == sorted(ys)
    assert picture(rows[:1], ["a"], {}, None, set()) is None
