"""A bundle's router ordered from the browser: the form becomes a job; what is wrong is said at its field."""

from pathlib import Path
from typing import Any

import pytest

from api.dashboard.teach import example_of
from db import jobs
from jobs import lifecycle
from tests.api.dashboard.conftest import Site
from tests.api.dashboard.test_bundles import bundled
from tests.factories import make_running

TAUGHT = "a: one apple\n\nb: two pears: green\n"


def test_the_bundle_s_page_leads_to_a_form_that_becomes_a_job(site: Site, tmp_path: Path) -> None:
    bundle = bundled(site.sign_in(), tmp_path / "kept")
    assert f'href="/jobs/router?bundle={bundle}"' in site.get(f"/jobs/{bundle}").text
    assert f'value="{bundle}"' in site.get(f"/jobs/router?bundle={bundle}").text
    answer = site.post("/jobs/router", action="submit", bundle=bundle, examples=TAUGHT)
    assert answer.status_code == 303, answer.text
    job_id = answer.headers["location"].removeprefix("/jobs/")
    with site.begin() as session:
        job = jobs.of_tenant(session, site.caller.tenant_id, job_id)
        assert job is not None and job.kind == "router" and job.plan is not None
        assert [each["member"] for each in job.spec["examples"]] == ["a", "b"]
        assert job.spec["examples"][1]["text"] == "two pears: green"
    assert bundle in site.get("/jobs").text and site.get(f"/jobs/{job_id}").status_code == 200


def test_without_examples_it_is_made_from_weights_alone(site: Site, tmp_path: Path) -> None:
    bundle = bundled(site.sign_in(), tmp_path / "kept")
    answer = site.post("/jobs/router", action="submit", bundle=bundle, layer="1", directions="4")
    assert answer.status_code == 303, answer.text
    with site.begin() as session:
        job = jobs.of_tenant(
            session, site.caller.tenant_id, answer.headers["location"].removeprefix("/jobs/")
        )
        assert job is not None and job.recipe["layer"] == 1
        assert (job.spec["examples"], job.spec["directions"]) == (None, 4)


@pytest.mark.parametrize(
    ("field", "typed", "said"),
    [
        ("bundle", "", "Name a bundle."),
        ("bundle", "nowhere", "nowhere"),
        ("examples", "a: one\nno member", "Line 2 is no example. Write member: text."),
        ("examples", "a: one\nzebra: two", "no member &#39;zebra&#39;"),
        ("examples", "a: one\na: two", "no example for b"),
        ("layer", "first", "is not a whole number"),
        ("layer", "77", "no layers.77.self_attn.v_proj.weight"),
        ("directions", "0", "greater than or equal to 1"),
        ("base", "nowhere", "nowhere"),
    ],
)
def test_what_cannot_work_is_said_at_its_field(
    site: Site, tmp_path: Path, field: str, typed: str, said: str
) -> None:
    form = {"action": "submit", "bundle": bundled(site.sign_in(), tmp_path / "kept"), field: typed}
    answer = site.post("/jobs/router", None, **form)
    assert answer.status_code == 422, answer.text
    marked = answer.text.split(f'id="{field}-wrong">')[1].split("</span>")[0]
    assert said in marked, marked
    assert "1 field needs another look" in answer.text


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"kind": "linear", "examples": 16, "accuracy": 1.0}, "Taught by labelled texts"),
        (
            {"kind": "linear", "accuracy": 1.0, "held_out": 4, "held_out_accuracy": 0.75},
            "75% of 4 texts held out",
        ),
        ({"kind": "svd", "layer": 3}, "Made from weights alone"),
    ],
)
def test_the_page_of_a_router_tells_how_it_was_made_and_did(
    site: Site, tmp_path: Path, told: dict[str, Any], said: str
) -> None:
    with site.sign_in().begin() as session:
        job, fence = make_running(session, caller=site.caller)
        job.kind, job.recipe = "router", {"bundle": "team/bundle"}
        result = {"folder": str(tmp_path), "router": {**told, "members": ["a", "b"]}}
        lifecycle.succeed(session, fence, result)
    page = site.get(f"/jobs/{job.id}").text
    assert said in page and "members a, b of <code>team/bundle</code>" in page


def test_examples_are_lines_or_objects() -> None:
    assert example_of("math: 7 x 8: what?") == {"member": "math", "text": "7 x 8: what?"}
    assert example_of('{"text": "a\\nb", "member": "m"}') == {"member": "m", "text": "a\nb"}
    for wrong in ("plain", "math:", '{"text": "x"}', '{"text": 1, "member": "m"}', "{"):
        assert example_of(wrong) is None
