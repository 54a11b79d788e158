"""The form by which one more model joins what a job has made."""

import shutil
from pathlib import Path
from typing import Any

from jobs import lifecycle
from tests.api.dashboard.conftest import Site
from tests.factories import make_running

STATE = {"method": "opcm", "models": 1, "settings": {"lengths_so_far": 3.0, "factor_so_far": 1.0}}


def merged(site: Site, folder: Path, **result: Any) -> str:
    """A finished job that has merged one model by opcm."""
    shutil.copytree(site.models / "expert1", folder)
    recipe = {
        "base": str(site.models / "base"),
        "sources": [{"id": "a", "model": str(site.models / "expert1")}],
        "steps": ["opcm"],
    }
    with site.begin() as session:
        job, fence = make_running(session, caller=site.caller, recipe=recipe)
        lifecycle.succeed(session, fence, {"folder": str(folder), **result})
        return job.id


def test_a_model_joins_from_the_page_of_the_job(site: Site, tmp_path: Path) -> None:
    job_id = merged(site.sign_in(), tmp_path / "kept", state=STATE)
    assert f'action="/jobs/{job_id}/append"' in site.get(f"/jobs/{job_id}").text
    model = str(site.models / "expert2")
    answer = site.post(f"/jobs/{job_id}/append", model=model, weight="2")
    assert answer.status_code == 303, answer.text
    page = site.get(answer.headers["location"]).text
    assert f"model: {job_id}" in page and f"model: {model}" in page and "weight: 2" in page


def test_what_is_wrong_is_said(site: Site, tmp_path: Path) -> None:
    job_id = merged(site.sign_in(), tmp_path / "kept", state=STATE)
    assert site.post(f"/jobs/{job_id}/append", model="").status_code == 422
    wide = site.post(f"/jobs/{job_id}/append", model=str(site.models / "stranger"))
    assert wide.status_code == 422 and "stranger" in wide.text


def test_other_results_have_no_such_form(site: Site, tmp_path: Path) -> None:
    job_id = merged(site.sign_in(), tmp_path / "kept")
    assert "/append" not in site.get(f"/jobs/{job_id}").text
    assert site.post(f"/jobs/{job_id}/append", model="x/y").status_code == 422
