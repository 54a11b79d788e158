"""What the pages say of methods that need to see models run on texts."""

import html
from typing import Any

from db import jobs, statistics
from jobs import lifecycle, recording
from tests.api.dashboard.conftest import Site
from tests.api.test_statistics import facts
from tests.factories import make_running

AIM = {"steps__1__method": "aim"}
MEASURED: dict[str, Any] = {
    "model": "base",
    "digest": "ab" * 32,
    "kinds": ["mean_abs_input"],
    "tokens": 131072,
    "seconds": 12.5,
    "found": False,
    "detail": "base: 131,072 tokens in 12.5 s",
}


def test_the_form_asks_for_data_only_where_a_method_measures(site: Site) -> None:
    site.sign_in()
    assert '<label for="calibration">' not in site.get("/jobs/new?method=ties").text
    text = site.post("/jobs/new", action="refresh", **site.draft(**AIM)).text
    assert '<label for="calibration">Calibration data</label>' in text
    assert "AIM needs to see the model run on texts" in text


def test_the_plan_says_what_measuring_takes(site: Site) -> None:
    text = site.sign_in().post("/jobs/new/plan", **site.draft(**AIM)).text
    assert "This can work." in text
    assert "<dt>Measuring</dt><dd>base: about" in text and "of memory" in text


def test_what_is_typed_becomes_the_data_of_the_recipe(site: Site) -> None:
    site.sign_in()
    (site.models / "texts.txt").write_text("Some words, enough to run a model on.\n")
    path = str(site.models / "texts.txt")
    answer = site.post("/jobs/new", action="submit", **site.draft(**AIM, calibration=path))
    assert answer.status_code == 303, html.unescape(answer.text)
    with site.begin() as session:
        job = jobs.of_tenant(
            session, site.caller.tenant_id, answer.headers["location"].removeprefix("/jobs/")
        )
        assert job is not None and job.recipe["calibration"]["data"]["path"] == path


def test_data_that_is_wrong_is_marked_at_its_field(site: Site) -> None:
    site.sign_in()
    answer = site.post("/jobs/new", action="submit", **site.draft(**AIM, calibration="./nowhere.txt"))
    assert answer.status_code == 422
    assert 'id="calibration-wrong"' in answer.text


def test_a_measuring_job_shows_its_speed_and_what_it_found(site: Site) -> None:
    site.sign_in()
    with site.begin() as session:
        job, fence = make_running(session, caller=site.caller)
        lifecycle.enter_phase(session, fence, "measuring")
        progress = {"fraction": 0.5, "tokens_done": 500, "tokens_total": 1000, "tokens_per_second": 4321}
        lifecycle.report_progress(session, fence, progress)
    text = site.get(f"/jobs/{job.id}").text
    assert "500 of 1,000" in text and "4,321 tokens/s" in text
    with site.begin() as session:
        recording.record_measured(session, fence, MEASURED)
        recording.record_measured(session, fence, {**MEASURED, "model": "a", "found": True})
    text = site.get(f"/jobs/{job.id}").text
    assert "base · mean abs input · 131,072 tokens in 12" in text
    assert "a · mean abs input · found again, nothing measured" in text
    assert f'href="/statistics/{MEASURED["digest"]}"' in text


def test_the_points_of_the_chart_count_tokens_while_measuring(site: Site) -> None:
    site.sign_in()
    with site.begin() as session:
        job, fence = make_running(session, caller=site.caller)
        lifecycle.enter_phase(session, fence, "measuring")
        lifecycle.report_progress(session, fence, {"tokens_done": 250, "tokens_total": 1000})
    text = html.unescape(site.get(f"/jobs/{job.id}").text)
    assert '"tokens": 250' in text and '"bytes": null' in text and '"phase": "measuring"' in text
    assert 'data-unit="tokens"' in text and 'data-unit="bytes"' in text


def test_what_was_measured_is_listed_page_by_page_and_told_one_by_one(site: Site) -> None:
    site.sign_in()
    assert "Nothing yet." in site.get("/statistics").text
    manifest = {
        "dead_channels": {"model.layers.0.mlp.down_proj.weight": 7, "b.weight": 0},
        "settings": {"rule": "blocks", "tokens": 512},
        "counted": {"a.weight": 5},
        "unmeasured": ["x", "y"],
        "notes": ["No images were given."],
    }
    for number in range(26):
        with site.begin() as session:
            told = facts(f"{number:064x}", manifest=manifest, data="acme/texts@" + "c" * 40 + ":a.txt")
            statistics.put(session, site.caller.tenant_id, f"{number:064x}", told)
    first = site.get("/statistics").text
    assert "org/base@000000000000<" in first and "acme/texts@cccccccccccc:a.txt" in first
    assert first.count("131,072 tokens") == 25
    older = html.unescape(first.split('href="/statistics?cursor=')[1].split('"')[0])
    assert site.get(f"/statistics?cursor={older}").text.count("131,072 tokens") == 1
    one = site.get("/statistics/" + "0" * 64).text
    assert "model.layers.0.mlp.down_proj.weight" in one and ">b.weight<" not in one
    assert "7 input channels were never anything but zero" in one and "No images were given." in one
    assert site.get("/statistics/" + "f" * 64).status_code == 404
