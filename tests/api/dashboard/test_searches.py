"""The page of a search: a picture, the best candidates, and a button that merges one."""

from typing import Any

from api.dashboard.searches import picture, sent_said
from db import trials
from db.models.job import Job
from db.models.trial import Trial
from jobs import lifecycle, recording
from jobs.request import read_order
from jobs.submit import submit
from tests.api.dashboard.conftest import Site
from tests.factories import make_rules


def searched(site: Site, **search: Any) -> str:
    (site.models / "texts.jsonl").write_text('{"text": "to be or not to be"}\n')
    order: dict[str, Any] = {
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
        recording.record_plan(session, fence, {"queue": "cpu", "findings": [], "inputs": []}, "cpu")
        for number, scale in enumerate((0.0, 0.5, 1.0)):
            values = [-3.0 + scale, 4.0 - 3.0 * scale][: len(order["search"]["objectives"])]
            told = {"values": values, "share": 1.0, "seconds": 0.25}
            facts = {"key": str(number), "share": 1.0, "number": number, "point": {"scale": scale}}
            session.add(Trial(root_id=job.root_id, **facts, told=told, elapsed=float(number)))
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
    assert "The recipe as it was sent scored" not in page  # searches that were over before it was kept
    answer = site.post(f"/jobs/{job_id}/trials/1/merge", repo="acme/half")
    assert answer.status_code == 303, answer.text
    merge = site.get(answer.headers["location"]).text
    assert "scale: 0.5" in merge and "acme/half" in merge
    assert site.post(f"/jobs/{job_id}/trials/{10**20}/merge").status_code == 422  # no number of a row


def test_two_objectives_are_drawn_against_each_other() -> None:
    rows = [Trial(number=n, point={"x": n}, share=1.0, told={"values": [n, 2.0 - n]}) for n in (0, 1, 2)]
    drawn = picture(rows, ["a", "b"], {"x": {"low": 0, "high": 2}}, 1, {0, 1})
    assert drawn is not None and (drawn["across"], drawn["up"]) == ("a", "b") and not drawn["curve"]
    assert [dot["kind"] for dot in drawn["dots"]] == ["own", "own", ""]
    xs, ys = [dot["x"] for dot in drawn["dots"]], [dot["y"] for dot in drawn["dots"]]
    assert xs == sorted(xs) and ys == sorted(ys)
    assert picture(rows[:1], ["a"], {}, None, set()) is None


def test_the_page_says_what_was_known_and_that_candidates_are_written(site: Site) -> None:
    job_id = searched(site.sign_in())
    assert "scored by an earlier job" not in site.get(f"/jobs/{job_id}").text
    with site.begin() as session:
        job = session.get(Job, job_id)
        assert job is not None
        why = "its result is a bundle"
        job.result = {**(job.result or {}), "candidates": {"made": "disk", "why": why}}
        row = trials.of_search(session, job.root_id)[0]
        row.told = {**(row.told or {}), "reused": True}
    page = site.get(f"/jobs/{job_id}").text
    assert "1 scored by an earlier job" in page
    assert "Candidates are written, one at a time: its result is a bundle." in page


def test_the_page_says_what_was_gained_over_the_recipe_as_it_was_sent() -> None:
    sent, best = {"number": 3, "values": [-2.5]}, {"number": 1, "values": [-2.0]}
    assert sent_said(sent, best) == ("The recipe as it was sent scored -2.5, the best that was found -2.")
    assert sent_said(best, best) == "The recipe as it was sent is the best that was found."
    assert sent_said({"number": 3, "values": None}, best) == "The recipe as it was sent could not be scored."
    assert sent_said({}, best) is None


def test_the_recipe_as_it_was_sent_is_no_point_of_a_curve_that_does_not_reach_it() -> None:
    rows = [Trial(number=n, point={"x": n}, share=1.0, told={"values": [float(n)]}) for n in (0, 1)]
    rows.append(Trial(number=2, point={}, share=1.0, told={"values": [9.0]}))
    drawn = picture(rows, ["a"], {"x": {"low": 0, "high": 2}}, 2, set())
    assert drawn is not None and len(drawn["dots"]) == 2 and drawn["across"] == "x"
    over_time = picture(rows, ["a"], {"x": {"low": 0, "high": 2}, "y": {"values": [1, 2]}}, 2, set())
    assert over_time is not None and len(over_time["dots"]) == 3
