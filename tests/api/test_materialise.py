"""``POST /v1/jobs {kind: materialise}``: a bundle's member as an order of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from merge.local import index_models, model_folders
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run


@pytest.fixture(scope="session")
def bundle(model_root: Path) -> Path:
    """A bundle of two experts, inside the roots; its base is named as a recipe of the service names it."""
    recipe = recipe_from(
        {
            "base": "base",
            "sources": [{"id": "a", "model": "expert1"}, {"id": "b", "model": "expert2"}],
            "steps": ["task_arithmetic"],
            "result": {"form": "bundle", "kind": "tall"},
        }
    )
    plan = make_plan(recipe, index_models(recipe, model_root), budget=1 << 30)
    out = model_root / "bundle"
    run(plan, model_folders(recipe, model_root), out, budget_bytes=1 << 30, threads=1)
    return out


def ask(api: TestClient, **fields: Any) -> Any:
    return api.post("/v1/jobs", json={"kind": "materialise", "bundle": "bundle", **fields})


def test_a_member_is_planned_as_the_merge_that_gives_it(api: TestClient, bundle: Path) -> None:
    answer = ask(api, member="b", dtype="float16", metadata={"for": "test"})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["kind"] == "materialise" and job["state"] == "queued"
    (source,) = job["recipe"]["sources"]
    assert (source["model"], source["adapter"], source["member"]) == ("base", "bundle", "b")
    assert job["plan"]["output"]["dtypes"] == ["F16"]
    listed = api.get("/v1/jobs").json()["data"]
    assert [each["kind"] for each in listed] == ["materialise"]
    types = [each["type"] for each in api.get(f"/v1/jobs/{job['id']}/events").json()["data"]]
    assert types == ["materialise.queued"]


def test_several_members_are_the_base_and_their_weighted_changes(api: TestClient, bundle: Path) -> None:
    plan = api.post(
        "/v1/plans", json={"kind": "materialise", "bundle": "bundle", "members": {"a": 0.5, "b": 0.25}}
    )
    assert plan.status_code == 200, plan.text
    recipe = plan.json()["recipe"]
    assert [each["weight"] for each in recipe["sources"]] == [0.5, 0.25]
    assert [each["method"] for each in recipe["steps"]] == ["task_arithmetic"]


@pytest.mark.parametrize(
    ("fields", "pointer", "sentence"),
    [
        ({"member": "maths"}, "/member", "the bundle holds a, b"),
        ({"members": {"a": 1, "z": 1}}, "/members", "no member 'z'"),
        ({"member": "a", "base": "expert1"}, None, None),
        ({"member": "a", "base": "nowhere"}, "/base", "nowhere"),
        ({"member": "a", "bundle": "base"}, "/bundle", "adapter_config.json"),
        ({"member": "a", "bundle": "nothing"}, "/bundle", "nothing"),
        ({}, "", "exactly one of member and members"),
        ({"member": "a", "members": {"b": 1}}, "", "exactly one of member and members"),
        ({"member": "a", "dtype": "int8"}, "/dtype", "bfloat16"),
        ({"member": "a", "membre": "b"}, "/membre", "not permitted"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(
    api: TestClient, bundle: Path, fields: dict[str, Any], pointer: str | None, sentence: str | None
) -> None:
    answer = ask(api, **fields)
    if pointer is None or sentence is None:  # weights are compared by the worker, which has them
        assert answer.status_code == 202, answer.text
        return
    assert answer.status_code == 422, answer.text
    problems = answer.json()["errors"]
    assert any(each["pointer"] == pointer and sentence in each["detail"] for each in problems), problems


def test_a_bundle_of_another_version_is_refused(api: TestClient, bundle: Path, model_root: Path) -> None:
    old = model_root / "newer"
    old.mkdir(exist_ok=True)
    told = json.loads((bundle / "bundle.json").read_bytes()) | {"format": 9}
    (old / "bundle.json").write_text(json.dumps(told))
    (old / "bundle.safetensors").write_bytes((bundle / "bundle.safetensors").read_bytes())
    answer = ask(api, bundle="newer", member="a")
    assert answer.status_code == 422 and "format 9" in answer.text and "bundle_version" in answer.text


def teach(api: TestClient, examples: list[tuple[str, str]], **fields: Any) -> Any:
    rows = [{"text": text, "member": member} for text, member in examples]
    return api.post("/v1/jobs", json={"kind": "router", "bundle": "bundle", "examples": rows, **fields})


def test_a_router_is_planned_over_the_base_alone(api: TestClient, bundle: Path) -> None:
    answer = teach(api, [("one", "a"), ("two", "b")])
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["kind"], job["state"]) == ("router", "queued")
    assert [each["role"] for each in job["plan"]["inputs"]] == ["base"]
    assert job["plan"]["estimate"]["peak_memory_bytes"] > 0
    plan = api.post(
        "/v1/plans",
        json={"kind": "router", "bundle": "bundle", "examples": [{"text": "x", "member": "a"}] * 2},
    )
    assert plan.status_code == 422 and "no example for b" in plan.text


@pytest.mark.parametrize(
    ("examples", "fields", "code", "pointer"),
    [
        ([("x", "a"), ("y", "c")], {}, "member_unknown", "/examples"),
        ([("x", "a"), ("y", "a")], {}, "request_invalid", "/examples"),
        ([("x", "a"), ("y", "b")], {"base": "nowhere"}, None, "/base"),
        ([("x", "a"), ("y", "b")], {"bundle": "expert1"}, None, "/bundle"),
        ([("", "a"), ("y", "b")], {}, None, "/examples/0/text"),
    ],
    ids=["member", "absent", "base", "bundle", "text"],
)
def test_what_a_router_cannot_learn_from_is_said_at_its_field(
    api: TestClient,
    bundle: Path,
    examples: list[tuple[str, str]],
    fields: dict[str, str],
    code: str | None,
    pointer: str,
) -> None:
    answer = teach(api, examples, **fields)
    assert answer.status_code == 422, answer.text
    assert pointer in answer.text and (code is None or code in answer.text)


def test_a_router_from_weights_alone_reads_one_weight_of_every_member(api: TestClient, bundle: Path) -> None:
    answer = api.post("/v1/jobs", json={"kind": "router", "bundle": "bundle", "layer": 0})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert [each["role"] for each in job["plan"]["inputs"]] == ["base", "a+adapter", "b+adapter"]
    assert list(job["plan"]["models"]) == ["base"]
    assert job["plan"]["estimate"]["peak_memory_bytes"] > 0


@pytest.mark.parametrize(
    ("fields", "code", "pointer", "sentence"),
    [
        ({"layer": 99}, "gate_unsupported", "/layer", "no layers.99.self_attn.v_proj.weight"),
        ({"layer": -1}, None, "/layer", "greater than or equal to 0"),
        ({"directions": 0}, None, "/directions", "greater than or equal to 1"),
        ({"examples": []}, None, "/examples", "at least 2"),
        ({"examples": [{"text": "x", "member": "a"}] * 2, "layer": 0}, None, "/layer", "needs no examples"),
    ],
)
def test_what_cannot_be_a_router_from_weights_is_said_at_its_field(
    api: TestClient, bundle: Path, fields: dict[str, Any], code: str | None, pointer: str, sentence: str
) -> None:
    answer = api.post("/v1/jobs", json={"kind": "router", "bundle": "bundle", **fields})
    assert answer.status_code == 422, answer.text
    problems = answer.json()["errors"]
    assert any(each["pointer"] == pointer and sentence in each["detail"] for each in problems), problems
    assert code is None or code in answer.text
