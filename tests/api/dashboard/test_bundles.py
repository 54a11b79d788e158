"""The page of a job that made a bundle: its members, and the form that gives one back."""

import shutil
from pathlib import Path

from jobs import lifecycle, recording
from merge.local import index_models, model_folders
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from tests.api.dashboard.conftest import Site
from tests.factories import make_running


def bundled(site: Site, folder: Path) -> str:
    """A finished job whose bundle of two experts lies in ``folder``."""
    document = {
        "base": str(site.models / "base"),
        "sources": [
            {"id": name, "model": str(site.models / f"expert{n}")} for n, name in ((1, "a"), (2, "b"))
        ],
        "steps": ["task_arithmetic"],
        "result": {"form": "bundle", "kind": "tall"},
    }
    recipe = recipe_from(document)
    plan = make_plan(recipe, index_models(recipe, Path()), budget=1 << 30)
    shutil.rmtree(folder, ignore_errors=True)
    run(plan, model_folders(recipe, Path()), folder, budget_bytes=1 << 30, threads=1)
    with site.begin() as session:
        job, fence = make_running(session, caller=site.caller, recipe=document)
        recording.record_plan(session, fence, plan.summary(), "cpu")
        told = {"kind": "tall", "members": ["a", "b"], "base": document["base"]}
        lifecycle.succeed(session, fence, {"folder": str(folder), "bundle": told})
        return job.id


def test_members_are_shown_with_what_they_take_and_come_back_as_jobs(site: Site, tmp_path: Path) -> None:
    job_id = bundled(site.sign_in(), tmp_path / "kept")
    page = site.get(f"/jobs/{job_id}").text
    assert "Members of the bundle" in page and f'action="/jobs/{job_id}/materialise"' in page
    assert "expert1" in page and "<option>b</option>" in page
    answer = site.post(f"/jobs/{job_id}/materialise", member="b", repo="")
    assert answer.status_code == 303, answer.text
    again = site.get(answer.headers["location"]).text
    assert "materialise" in again and f"adapter: {job_id}" in again and "member: b" in again


def test_what_is_wrong_with_the_wish_is_said(site: Site, tmp_path: Path) -> None:
    job_id = bundled(site.sign_in(), tmp_path / "kept")
    unknown = site.post(f"/jobs/{job_id}/materialise", member="zebra")
    assert unknown.status_code == 422 and "the bundle holds a, b" in unknown.text
    shutil.rmtree(tmp_path / "kept")
    gone = site.post(f"/jobs/{job_id}/materialise", member="a")
    assert gone.status_code == 422 and "no longer kept" in gone.text


def test_other_results_have_no_members(site: Site, tmp_path: Path) -> None:
    with site.sign_in().begin() as session:
        job, fence = make_running(session, caller=site.caller)
        lifecycle.succeed(session, fence, {"folder": str(tmp_path)})
    assert "/materialise" not in site.get(f"/jobs/{job.id}").text
    assert site.post(f"/jobs/{job.id}/materialise", member="a").status_code == 409
