"""Searches over HTTP: what is refused at once, what was tried, and a point merged for good."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from db.models.trial import Trial
from jobs import lifecycle

TEXTS = {"name": "texts", "kind": "perplexity", "data": {"path": "texts.jsonl"}}


def order(search: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "kind": "search",
        "recipe": {
            "base": "base",
            "sources": [{"id": "a", "model": "expert1"}, {"id": "b", "model": "expert2"}],
            "steps": ["task_arithmetic"],
        },
        "search": {
            "method": "grid",
            "settings": {"levels": 3},
            "space": {"scale": {"at": "steps.task_arithmetic.scale", "low": 0, "high": 1}},
            "objectives": [{"set": "texts"}],
            **(search or {}),
        },
        "evaluate": {"sets": [TEXTS]},
        **more,
    }


def done(sessions: sessionmaker[Session], job_id: str) -> None:
    """Ends the search as its worker would."""
    with sessions.begin() as session:
        job = lifecycle.claim(session, job_id, "worker", 60)
        assert job is not None
        for number, scale in enumerate((0.0, 0.5, 1.0)):
            told = {"values": [-3.0 + scale], "share": 1.0, "seconds": 0.25}
            told = {"share": 1.0, "error": "NotFinite: x", "seconds": 0.1} if scale == 0.5 else told
            told |= {"reused": True} if scale == 1.0 else {}
            facts = {"key": str(number), "share": 1.0, "number": number, "point": {"scale": scale}}
            session.add(Trial(root_id=job.root_id, **facts, told=told, elapsed=float(number)))
        best = {"number": 2, "point": {"scale": 1.0}, "values": [-2.0], "recipe": {}}
        found = {"best": best, "front": [], "hypervolume": None, "ended": "done", "folder": "/kept"}
        lifecycle.succeed(session, lifecycle.fence_of(job), found)


@pytest.fixture(autouse=True)
def texts(model_root: Path) -> None:
    (model_root / "texts.jsonl").write_text('{"text": "to be or not to be"}\n' * 4)


@pytest.fixture
def ended(api: TestClient, sessions: sessionmaker[Session]) -> str:
    answer = api.post("/v1/jobs", json=order())
    assert answer.status_code == 202, answer.text
    told = answer.json()["plan"]["search"]
    assert (told["method"], told["numbers"], told["evaluations"]) == ("grid", 1, 3)
    assert (told["candidates"]["made"], told["candidates"]["why"]) == ("memory", None)
    done(sessions, answer.json()["id"])
    return str(answer.json()["id"])


def test_what_was_tried_is_told_page_by_page(api: TestClient, ended: str) -> None:
    first = api.get(f"/v1/jobs/{ended}/trials?limit=2").json()
    assert first["has_more"] and [each["number"] for each in first["data"]] == [0, 1]
    assert first["data"][1] | {"elapsed": 0} == {
        "number": 1, "point": {"scale": 0.5}, "values": None, "share": 1.0, "error": "NotFinite: x",
        "seconds": 0.1, "elapsed": 0, "state": "failed", "worker": None, "reused": False,
    }  # fmt: skip
    assert first["workers"] == [{"id": ended, "state": "succeeded", "trials": 0, "error": None}]
    rest = api.get(f"/v1/jobs/{ended}/trials?after=1").json()
    assert not rest["has_more"] and rest["data"][0]["values"] == [-2.0] and rest["data"][0]["reused"]


def test_a_point_becomes_a_merge(api: TestClient, ended: str) -> None:
    answer = api.post(f"/v1/jobs/{ended}/trials/2/merge", json={"output": {"repo": "acme/best"}})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["kind"] == "merge" and job["output"]["repo"] == "acme/best"
    assert job["recipe"]["steps"] == [{"method": "task_arithmetic", "scale": 1.0}]
    assert job["metadata"] == {"search": ended, "trial": "2"}


def test_only_points_of_searches_are_merged(api: TestClient, ended: str) -> None:
    assert api.post(f"/v1/jobs/{ended}/trials/7/merge", json={}).status_code == 404
    merge = api.post("/v1/jobs", json={"recipe": order()["recipe"]}).json()["id"]
    assert api.post(f"/v1/jobs/{merge}/trials/0/merge", json={}).status_code == 404


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"space": {}}, "the space is empty"),
        ({"space": {"x": {"at": "steps.task_arithmetic.scal", "low": 0, "high": 1}}}, "scal"),
        (
            {"space": {"x": {"at": "steps.slerp.t", "low": 0, "high": 1}}},
            "'slerp' among the steps is not there",
        ),
        ({"space": {"x": {"at": "sources.c"}}}, "'c' among the sources is not there"),
        ({"objectives": [{"set": "other"}]}, "names the set 'other'; evaluate has texts"),
        ({"objectives": [{"set": "texts", "metric": "accuracy"}]}, "does not measure 'accuracy'"),
        ({"objectives": [{"set": "texts", "metric": "perplexity_of"}]}, "does not measure 'perplexity_of'"),
        ({"objectives": [{"set": "texts", "member": "a"}]}, "only a bundle has members"),
        ({"method": "hill"}, "there is no search method 'hill'"),
        ({"budget": {"evaluations": 2}}, "needs at least 3 evaluations"),
        ({"settings": {"levels": 1}}, "settings.levels"),
    ],
)
def test_what_cannot_be_searched_is_refused_at_submit(
    api: TestClient, search: dict[str, Any], said: str
) -> None:
    answer = api.post("/v1/jobs", json=order(search))
    assert answer.status_code == 422 and said in answer.text, answer.text
    assert api.get("/v1/jobs").json()["data"] == []


def test_values_out_of_a_setting_s_range_are_refused_at_submit(api: TestClient) -> None:
    recipe = {**order()["recipe"], "steps": ["ties"]}
    for space, pointer in (({"w": {"at": 3}}, "/search/space/w/at"), ({"w": []}, "/search/space/w")):
        refused = api.post("/v1/jobs", json=order({"space": space}))
        assert {each["pointer"] for each in refused.json()["errors"]} == {pointer}, refused.text
    names = {"method": "evo_merging", "settings": {"denoise": ["A B"]}}
    refused = api.post("/v1/jobs", json=order(names))
    assert refused.json()["errors"][0]["pointer"] == "/search/settings/denoise/0", refused.text
    space = {"density": {"at": "steps.ties.density", "low": 0.1, "high": 2}}
    answer = api.post("/v1/jobs", json=order({"space": space}, recipe=recipe))
    assert answer.status_code == 422 and "density must be" in answer.text, answer.text


def test_a_recipe_that_contradicts_itself_is_refused_at_submit(api: TestClient) -> None:
    answer = api.post("/v1/jobs", json=order(recipe={**order()["recipe"], "reference": "nobody"}))
    assert answer.status_code == 422 and "There is no source 'nobody'" in answer.text, answer.text


def test_a_choice_that_a_setting_cannot_take_is_refused_at_submit_wherever_it_stands(api: TestClient) -> None:
    recipe = {**order()["recipe"], "steps": ["ties"]}
    for place in range(5):
        values = [0.1, 0.2, 0.3, 0.4, 0.5]
        values[place] = 5
        space = {"density": {"at": "steps.ties.density", "values": values}}
        answer = api.post("/v1/plans", json=order({"space": space}, recipe=recipe))
        assert answer.status_code == 422 and "density must be" in answer.text, (place, answer.text)


def test_a_plan_says_that_candidates_will_be_written_and_what_that_takes(api: TestClient) -> None:
    recipe = {**order()["recipe"], "result": {"form": "adapter", "rank": 2}}
    held, answer = (api.post("/v1/plans", json=each) for each in (order(), order(recipe=recipe)))
    assert answer.status_code == 200, answer.text
    told, estimate = answer.json()["plan"]["search"]["candidates"], answer.json()["plan"]["estimate"]
    assert (told["made"], told["why"]) == ("disk", "its result is an adapter")
    assert estimate["disk_bytes"] == told["bytes"] > 0 == estimate["output_bytes"]
    assert held.json()["plan"]["estimate"]["disk_bytes"] == 0


def test_a_candidate_that_nothing_can_load_is_refused_at_submit(api: TestClient) -> None:
    recipe = {**order()["recipe"], "result": {"form": "moe", "architecture": "deepseek", "gate": "random"}}
    space = {"a": {"at": "sources.a.weight", "low": 0, "high": 1}}
    answer = api.post("/v1/jobs", json=order({"space": space}, recipe={**recipe}))
    assert answer.status_code == 422 and "no class for a deepseek mixture" in answer.text, answer.text
    assert answer.json()["errors"][0]["pointer"] == "/recipe/result"


def test_what_is_wrong_with_the_recipe_or_the_space_is_told_where_it_lies(api: TestClient) -> None:
    right = order()["recipe"]
    for recipe, pointer in (
        ({"steps": [{"method": "tise"}]}, "/recipe/steps/0/method"),
        ({"steps": ["task_arithmetic", "ties"]}, "/recipe/steps"),
        ({"sources": [*right["sources"], "nowhere"]}, "/recipe/sources/2/model"),
        ({"reference": "nobody"}, "/recipe/reference"),
    ):
        space = {"weight": {"at": "sources.a.weight", "low": 0, "high": 1}}
        answer = api.post("/v1/plans", json=order({"space": space}, recipe={**right, **recipe}))
        assert answer.status_code == 422, recipe
        assert pointer in [each["pointer"] for each in answer.json()["errors"]], answer.text
    space = {"density": {"at": "steps.ties.density", "low": 0, "high": 1}}
    refused = api.post("/v1/jobs", json=order({"space": space}, recipe={**right, "steps": ["ties"]}))
    assert refused.status_code == 422
    assert {each["pointer"] for each in refused.json()["errors"]} == {"/search/space"}, refused.text


def test_a_member_that_the_bundle_will_not_have_is_refused_at_submit(api: TestClient) -> None:
    recipe = {**order()["recipe"], "result": {"form": "bundle", "kind": "tall"}}
    wanted = order({"objectives": [{"set": "texts", "member": "c"}]}, recipe=recipe)
    answer = api.post("/v1/jobs", json=wanted)
    assert answer.status_code == 422 and "no member 'c'; it has a, b" in answer.text
    assert answer.json()["errors"][0]["pointer"] == "/search/objectives/0/member"


HARNESS = {"name": "texts", "kind": "lm_eval", "settings": {"task": "arc_easy"}}


def test_a_search_by_a_task_of_lm_eval_is_taken_and_its_plan_says_why_candidates_are_written(
    api: TestClient,
) -> None:
    wanted = order({"objectives": [{"set": "texts", "metric": "acc_norm"}]}, evaluate={"sets": [HARNESS]})
    answer = api.post("/v1/jobs", json=wanted)
    assert answer.status_code == 202, answer.text
    told = answer.json()["plan"]["search"]["candidates"]
    assert told["made"] == "disk" and told["bytes"] > 0
    assert told["why"] == "its set texts is scored by lm-evaluation-harness, which loads a folder"


@pytest.mark.parametrize(
    ("search", "at", "said"),
    [
        ({"objectives": [{"set": "texts"}]}, "metric", "name the metric here"),
        ({"objectives": [{"set": "texts", "metric": "score"}]}, "goal", "add goal: max"),
        (
            {
                "objectives": [{"set": "texts", "metric": "f1"}],
                "method": "m2n2",
                "settings": {},
            },
            "metric",
            "m2n2 needs the score of every example",
        ),
    ],
)
def test_what_a_task_of_lm_eval_leaves_open_is_refused_at_its_field(
    api: TestClient, search: dict[str, Any], at: str, said: str
) -> None:
    answer = api.post("/v1/jobs", json=order(search, evaluate={"sets": [HARNESS]}))
    assert answer.status_code == 422 and said in answer.text, answer.text
    assert answer.json()["errors"][0]["pointer"] == f"/search/objectives/0/{at}"
    assert api.get("/v1/jobs").json()["data"] == []
