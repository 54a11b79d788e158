"""Bundles on the Hub: made by one job, and given back member by member by others."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs.asking import Asking
from jobs.credentials import store_token
from jobs.keyring import Keyring
from jobs.kinds import plan_order
from jobs.planning import Planner
from jobs.request import read_order
from jobs.submit import submit
from merge.__main__ import main
from tests.factories import TEST_SECRET, make_caller, make_rules
from tests.worker.conftest import TOKEN, Floor, family_recipe

BUNDLE, MEMBER = "team/bundle", "team/member"


def bundled(floor: Floor, kind: str = "tall", **changes: Any) -> dict[str, Any]:
    result = {"form": "bundle", "kind": kind, **changes}
    recipe = family_recipe(steps=["task_arithmetic"], result=result)
    job = floor.run(floor.order(recipe, output={"repo": BUNDLE}))
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    assert job.result is not None
    return job.result


def order(floor: Floor, **fields: Any) -> str:
    """A queued order of the kind materialise, as a front desk leaves it whose Hub did not answer."""
    with floor.sessions.begin() as session:
        caller = make_caller(session, "bob")
        credential = store_token(session, Keyring(TEST_SECRET), caller.tenant_id, "hub", TOKEN)
        told = {"kind": "materialise", "bundle": BUNDLE, "hub_credential": credential.id}
        request = read_order({**told, **fields})
        return submit(session, caller, request, None, make_rules()).id


def test_a_planned_order_runs_on_the_commits_it_was_planned_with(floor: Floor) -> None:
    bundled(floor, "emr", base="inside")
    workshop = floor.workshop
    planner = Planner(workshop.hub, [], 1 << 30)
    request = read_order({"kind": "materialise", "bundle": BUNDLE, "member": "b"})
    with closing(planner):
        planned = plan_order(request, Asking(planner, TOKEN, "anyone"))
    pinned = f"{BUNDLE}@{floor.hub.head(BUNDLE)}"
    with floor.sessions.begin() as session:
        caller = make_caller(session, "bob")
        credential = store_token(session, Keyring(TEST_SECRET), caller.tenant_id, "hub", TOKEN)
        request = request.model_copy(update={"hub_credential": credential.id})
        job_id = submit(session, caller, request, planned, make_rules()).id
    assert floor.job(job_id).recipe["sources"][0]["model"] == f"{pinned}:base"
    job = floor.run(job_id)
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    assert job.result is not None and (Path(job.result["folder"]) / "config.json").is_file()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: each for path in sorted(folder.glob("*.safetensors")) for name, each in load_file(path).items()
    }


@pytest.mark.parametrize("kind", ["tall", "twin"])
def test_a_member_comes_back_from_a_bundle_on_the_hub(floor: Floor, kind: str) -> None:
    changes = {"keep": 1.0} if kind == "twin" else {"base": "inside"}
    told = bundled(floor, kind, **changes)
    assert told["bundle"]["kind"] == kind and told["bundle"]["members"] == ["a", "b"]
    root = floor.hub.store.root
    assert "## Members" in (root / BUNDLE / "README.md").read_text()
    job = floor.run(order(floor, member="a", output={"repo": MEMBER}))
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    assert job.result is not None and job.result["checked"] is True
    got, expert, base = (weights(root / each) for each in (MEMBER, "team/expert1", "team/base"))
    far = max(float((got[name].float() - expert[name].float()).abs().max()) for name in expert)
    change = max(float((base[name].float() - expert[name].float()).abs().max()) for name in expert)
    assert far < (0.02 if kind == "twin" else 2 * change)
    assert json.loads((root / MEMBER / "mergery.json").read_bytes())["recipe"]["sources"][0]["id"] == "a"
    types = floor.types(job.id)
    assert types[0] == "materialise.queued" and types[-1] == "materialise.succeeded"


TEXTS = {"a": "aaaa abab aab", "b": "9876 1234 5555"}


def examples() -> list[dict[str, str]]:
    return [
        {"text": f"{words} {number}", "member": member}
        for member, words in TEXTS.items()
        for number in range(10)
    ]


@pytest.mark.parametrize("kind", ["tall", "twin"])
def test_a_router_is_taught_by_labelled_texts(
    floor: Floor, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a twin the merge inside the bundle is what is looked at; the files then serve beside the bundle."""
    bundled(floor, kind)
    job = floor.run(order(floor, kind="router", examples=examples()))
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    assert job.result is not None
    folder, told = Path(job.result["folder"]), job.result["router"]
    assert sorted(path.name for path in folder.iterdir()) == ["router.json", "router.safetensors"]
    assert told["members"] == ["a", "b"] and told["kind"] == "linear"
    assert told["examples"] + told.get("held_out", 0) == 20 and 0.5 < told["accuracy"] <= 1.0
    assert [event for event in floor.types(job.id) if event.startswith("router.")][-1] == "router.succeeded"
    root = floor.hub.store.root
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"{words} 3" for words in TEXTS.values()))
    bundle, base = str(root / BUNDLE), [] if kind == "twin" else ["--base", str(root / "team/base")]
    capsys.readouterr()
    assert main(["route", bundle, str(texts), "--router", str(folder), *base]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.keys() for row in rows] == [TEXTS.keys()] * 2


@pytest.mark.parametrize("kind", ["tall", "twin"])
def test_a_router_is_made_from_weights_alone(floor: Floor, kind: str, tmp_path: Path) -> None:
    """The same as the command makes; only files that hold the weights it looks at are fetched."""
    bundled(floor, kind)
    root = floor.hub.store.root
    job = floor.run(order(floor, kind="router", layer=0, directions=3))
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    assert job.result is not None and job.plan is not None
    assert job.result["router"] == {"kind": "svd", "layer": 0, "members": ["a", "b"]}
    sizes = {each["role"]: each["size_bytes"] for each in job.plan["inputs"]}
    assert list(sizes) == ["base", "a+adapter", "b+adapter"]
    if kind == "tall":
        shards = [path.stat().st_size for path in (root / "team/base").glob("*.safetensors")]
        assert sizes["base"] in shards and sizes["base"] < sum(shards)
    read = load_file(Path(job.result["folder"]) / "router.safetensors")["directions"]
    bundle, base = str(root / BUNDLE), [] if kind == "twin" else ["--base", str(root / "team/base")]
    assert main(["router", bundle, "--layer", "0", "--directions", "3", *base]) == 0
    assert torch.equal(read, load_file(root / BUNDLE / "router.safetensors")["directions"])
    assert read.shape == (2, 3, 64)
