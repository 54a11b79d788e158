"""What the list and the page of a job say, and how they stay up to date."""

import html
import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from api.dashboard import live
from db.models.job import Job
from jobs import events, lifecycle, recording
from jobs.keys import create_key
from merge.guide import advice_on
from merge.recipe.presets import listing
from tests.api.dashboard.conftest import Site
from tests.api.test_jobs import SURVEY
from tests.factories import make_caller, make_job, make_running

SCORES = {
    "name": "held-out",
    "kind": "perplexity",
    "scores": [
        {"subject": "result", "metric": "perplexity", "value": 6.25, "stderr": 0.125, "n": 10},
        {"subject": "math", "metric": "perplexity", "value": 7.5, "stderr": 0.25, "n": 10},
    ],
}


def finish(site: Site, repo: str = "acme/merged") -> Job:
    """A job that has gone the whole way."""
    with site.begin() as session:
        _, fence = make_running(session, caller=site.caller, output={"repo": repo})
        lifecycle.enter_phase(session, fence, "merging")
        for done in (0, 400, 1000):
            progress = {"fraction": done / 1000, "bytes_done": done, "bytes_total": 1000}
            lifecycle.report_progress(session, fence, progress)
        recording.record_artifact(session, fence, "repo", repo, commit_sha="c0ffee" * 6)
        recording.record_evaluation(session, fence, SCORES)
        check = {"name": "smoke", "kind": "check", "passed": True, "detail": {"loaded": True}}
        recording.record_evaluation(session, fence, check)
        return lifecycle.succeed(session, fence, {"repo": repo, "url": f"http://127.0.0.1:9/{repo}"})


def messages(site: Site, path: str, **headers: str) -> Iterator[dict[str, str]]:
    """The server-sent events of a stream that ends."""
    for block in site.get(path, **headers).text.split("\n\n"):
        lines = [line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":")]
        if lines:
            yield {"data": "\n".join(value for name, value in lines if name == "data")} | {
                name: value for name, value in lines if name != "data"
            }


def test_the_page_of_an_order_that_only_an_earlier_version_took_shows_it_as_it_was(site: Site) -> None:
    job = finish(site.sign_in())
    outdated = "jsonb_set({0}::jsonb, '{{{1}}}', '\"of old\"')"
    changes = {
        "spec": outdated.format("spec", "output,revision"),
        "recipe": outdated.format("recipe", "seed"),
    }
    with site.begin() as session:
        said = ", ".join(f"{column} = {value}" for column, value in changes.items())
        session.execute(text(f"UPDATE job SET {said}"))
    page = site.get(f"/jobs/{job.id}")
    assert (page.status_code, page.text.count("of old")) == (200, 3)
    assert site.get(f"/jobs/new?from={job.id}").status_code == 200


def test_the_page_of_a_finished_job_shows_scores_beside_the_parents(site: Site) -> None:
    job = finish(site.sign_in())
    text = site.get(f"/jobs/{job.id}").text
    assert "Succeeded" in text and "acme/merged" in text and f"/jobs/new?from={job.id}" in text
    assert "6.25" in text and "± 0.12" in text and "7.5" in text and "lower is better" in text
    assert text.index('<th scope="col" class="r">result</th>') < text.index('class="r">math</th>')
    assert "smoke: passed" in text
    assert "hx-sse:connect" not in text


def test_a_difference_that_is_not_clear_may_be_chance(site: Site) -> None:
    told = {"value": -1.25, "low": -2.5, "high": 0.5}
    differences = {"math": told | {"clear": False}, "code": told | {"clear": True}}
    scores = [{"subject": "result", "metric": "perplexity", "value": 6.25, "differences": differences}]
    with site.sign_in().begin() as session:
        job, fence = make_running(session, caller=site.caller)
        recording.record_evaluation(session, fence, {"name": "t", "kind": "perplexity", "scores": scores})
    rows = site.get(f"/jobs/{job.id}").text.split("result − ")[1:]
    assert {row.split("<")[0]: "may be chance" in row for row in rows} == {"math": True, "code": False}


def test_the_report_is_a_page_of_its_own_that_runs_no_script(site: Site) -> None:
    site.sign_in()
    with site.begin() as session:
        job, fence = make_running(session, caller=site.caller)
        plain = site.get(f"/jobs/{job.id}").text
        recording.record_report(session, fence, SURVEY)
    assert "/report" not in plain
    assert f'href="/jobs/{job.id}/report"' in site.get(f"/jobs/{job.id}").text
    answer = site.get(f"/jobs/{job.id}/report")
    assert "Norms of the task vectors" not in answer.text
    assert "followed by the result" in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src")
    assert answer.headers["cache-control"] == "no-store"


def test_a_running_job_shows_how_far_it_is(site: Site) -> None:
    site.sign_in()
    with site.begin() as session:
        job, fence = make_running(session, caller=site.caller)
        lifecycle.enter_phase(session, fence, "merging")
        progress = {
            "fraction": 0.25,
            "bytes_done": 5e8,
            "bytes_total": 2e9,
            "tensors_done": 3,
            "tensors_total": 12,
        }
        lifecycle.report_progress(session, fence, progress | {"eta_seconds": 90})
    text = site.get(f"/jobs/{job.id}").text
    assert "500 MB of 2.0 GB" in text and "3 of 12" in text and "1 min 30 s" in text
    assert f'hx-sse:connect="/jobs/{job.id}/live?after=' in text
    assert '<noscript><meta http-equiv="refresh"' in text
    rows = site.get("/jobs/rows").text
    assert "merging · 25 %" in rows and 'hx-trigger="every 2s"' in rows


def test_the_stream_brings_the_page_and_the_points_of_the_chart_and_ends(site: Site) -> None:
    job = finish(site.sign_in())
    told = list(messages(site, f"/jobs/{job.id}/live"))
    points = [json.loads(each["data"]) for each in told if each.get("event") == "progress"]
    assert points and points[0]["phase"] == "merging"
    page = next(each for each in told if "event" not in each)
    assert "Succeeded" in page["data"] and page["id"] == str(job.event_seq)
    assert told[-1] == {"data": "succeeded", "event": "ended"}


def test_a_stream_keeps_no_points_that_it_has_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[live.Watch] = []

    class Seen(live.Watch):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            seen.append(self)

    monkeypatch.setattr(live, "Watch", Seen)
    job = finish(site.sign_in())
    told = list(messages(site, f"/jobs/{job.id}/live"))
    assert "progress" in [each.get("event") for each in told]
    assert seen[0].points == [] and seen[0].log


def test_a_resumed_stream_does_not_repeat_points(site: Site) -> None:
    job = finish(site.sign_in())
    assert site.get(f"/jobs/{job.id}/live", **{"Last-Event-ID": "9" * 5000}).status_code == 200
    told = list(messages(site, f"/jobs/{job.id}/live", **{"Last-Event-ID": str(job.event_seq)}))
    assert [each.get("event") for each in told] == [None, "ended"]


def test_the_page_of_a_long_job_reads_its_newest_events_and_leads_to_the_rest(site: Site) -> None:
    site.sign_in()
    with site.begin() as session:
        job, fence = make_running(session, caller=site.caller)
        lifecycle.enter_phase(session, fence, "downloading")
        for number in range(250):
            recording.record_warning(session, fence, "note", f"number {number}.")
        lifecycle.enter_phase(session, fence, "merging")
    text = site.get(f"/jobs/{job.id}").text
    assert "number 249." in text and "number 100." not in text
    assert text.count('<li id="event-') == 100
    assert ">Downloading</b>" in text and ">Merging</b>" in text, "phases know what the log has left out"
    told, path = "", text.split(f'href="/jobs/{job.id}/log')[1].split('"')[0]
    while path:
        text = site.get(f"/jobs/{job.id}/log{path}").text
        told += text
        _, more, rest = text.partition("log?before=")
        path = "?before=" + rest.split('"')[0] if more else ""
    assert all(f"number {number}." in told for number in range(150))
    assert "merge.queued" in told


def test_a_long_chart_is_thinned_where_it_is_read(site: Site) -> None:
    site.sign_in()
    with site.begin() as session:
        job, _ = make_running(session, caller=site.caller)
        for done in range(1300):
            events.record(session, job, "merge.progress", {"phase": "merging", "bytes_done": done})
    text = site.get(f"/jobs/{job.id}").text
    points = json.loads(html.unescape(text.split('data-points="')[1].split('"')[0]))
    assert 500 <= len(points) <= 700 and points == sorted(points, key=lambda each: each["seq"])


def test_a_failed_job_says_why_and_can_be_tried_again(site: Site) -> None:
    site.sign_in()
    with site.begin() as session:
        job, fence = make_running(session, caller=site.caller)
        lifecycle.fail(session, fence, "not_finite", "Tensor x of <b>math</b> holds NaN.")
    text = site.get(f"/jobs/{job.id}").text
    assert "Tensor x of &lt;b&gt;math&lt;/b&gt; holds NaN." in text and "not_finite" in text
    answer = site.post(f"/jobs/{job.id}/retry")
    again = answer.headers["location"]
    assert answer.status_code == 303 and again != f"/jobs/{job.id}"
    assert "Queued" in site.get(again).text


def test_only_a_job_that_made_something_shows_how_large_its_result_is(site: Site) -> None:
    site.sign_in()
    ends = {
        "succeeded": lambda session, fence: lifecycle.succeed(session, fence, {}),
        "failed": lambda session, fence: lifecycle.fail(session, fence, "not_finite", "Tensor x holds NaN."),
    }
    for state, end in ends.items():
        with site.begin() as session:
            job, fence = make_running(session, caller=site.caller)
            recording.record_plan(session, fence, {"estimate": {"output_bytes": 112_000}})
            end(session, fence)
        text = site.get(f"/jobs/{job.id}").text
        assert ("<dt>Result</dt>" in text) == (state == "succeeded")


def test_a_job_can_be_cancelled_where_it_stands(site: Site) -> None:
    site.sign_in()
    with site.begin() as session:
        queued, running = make_job(session, site.caller), make_running(session, caller=site.caller)[0]
    for job, word in ((queued, "Cancelled"), (running, "Cancelling")):
        assert "Cancel</button>" in site.get(f"/jobs/{job.id}").text
        assert site.post(f"/jobs/{job.id}/cancel").status_code == 303
        text = site.get(f"/jobs/{job.id}").text
        assert word in text and "Cancel</button>" not in text


def test_another_tenants_job_is_not_there(site: Site) -> None:
    with site.begin() as session:
        job = make_job(session, make_caller(session, "another"))
    site.sign_in()
    for path in (f"/jobs/{job.id}", f"/jobs/{job.id}/live", f"/jobs/new?from={job.id}"):
        assert site.get(path).status_code == 404
    for path in (f"/jobs/{job.id}/cancel", f"/jobs/{job.id}/retry"):
        assert site.post(path).status_code == 404
    assert job.id not in site.get("/jobs").text


def test_the_list_goes_on_page_by_page_and_keeps_its_filter(site: Site) -> None:
    site.sign_in()
    with site.begin() as session:
        made = {make_job(session, site.caller).id for _ in range(30)}
    first = site.get("/jobs?state=queued").text
    older = first.split('<a href="/jobs?state=queued&amp;cursor=')[1].split('"')[0]
    second = site.get(f"/jobs?state=queued&cursor={older}").text
    shown = [sum(job_id in text for job_id in made) for text in (first, second)]
    assert shown == [25, 5]
    assert site.get(f"/jobs?cursor={older}").status_code == 400
    assert "No job is failed" in site.get("/jobs?state=failed").text


def test_an_unknown_page_is_said_in_words(site: Site) -> None:
    answer = site.sign_in().get("/methods/nonsense")
    assert answer.status_code == 404
    assert "there is no method" in answer.text and "text/html" in answer.headers["content-type"]


def test_every_method_has_a_page_with_its_settings(site: Site) -> None:
    site.sign_in()
    listed = site.get("/methods").text
    for entry in listing().values():
        assert f"/methods/{entry.name}" in listed
        text = site.get(f"/methods/{entry.name}").text
        told = html.unescape(text.replace("<code>", "").replace("</code>", ""))
        assert all(each.replace("`", "") in told for each in asdict(advice_on(entry)).values())
        assert all(f">{name}</" in text for name in entry.settings)


def test_a_secret_is_shown_once(site: Site) -> None:
    site.sign_in()
    made = site.post("/webhooks", url="https://example.org/hook", events=["merge.failed"]).text
    assert "whsec_" in made
    listed = site.get("/webhooks").text
    assert "https://example.org/hook" in listed and "whsec_" not in listed
    assert "must start with" in site.post("/webhooks", url="ftp://x", events=["merge.failed"]).text
    made = site.post("/keys", name="robot", scopes=["merges:read"]).text
    secret = made.split('id="secret">')[1].split("<")[0]
    assert secret not in site.get("/keys").text
    assert site.post("/login", key=secret).status_code == 303


def test_a_key_that_ends_says_when(site: Site) -> None:
    site.sign_in()
    assert "<br>ends " not in site.get("/keys").text
    with site.begin() as session:
        ends = datetime(2021, 3, 4, 5, 6, tzinfo=UTC)
        create_key(session, site.caller.tenant_id, "robot", ["merges:read"], ends)
    assert "<br>ends 2021-03-04T05:06:00Z" in site.get("/keys").text


def test_a_job_that_nobody_takes_says_so_after_a_minute(site: Site) -> None:
    site.sign_in()
    with site.begin() as session:
        fresh, old = make_job(session, site.caller), make_job(session, site.caller)
        old.created_at -= timedelta(minutes=5)
    told = site.get(f"/jobs/{old.id}").text
    assert "It has waited for 5 min" in told and "no worker is at work on the queue cpu" in told
    assert "It has waited" not in site.get(f"/jobs/{fresh.id}").text


def test_who_has_no_key_or_hub_token_yet_is_told_where_one_comes_from(site: Site) -> None:
    assert "<code>mergery keys create</code>" in site.get("/login").text
    site.sign_in()
    assert '<a href="/keys#tokens">keep one</a>' in site.get("/jobs/new").text


def test_a_hub_token_is_kept_and_never_shown(site: Site) -> None:
    site.sign_in()
    assert site.post("/tokens", name="push", token="hf_canary").status_code == 303
    text = site.get("/keys").text
    assert "push" in text and "hf_canary" not in text
    assert '<select id="credential"' in site.get("/jobs/new").text
    forget = text.split('action="/tokens/')[1].split('"')[0]
    assert site.post(f"/tokens/{forget}").status_code == 303
    assert "/forget" not in site.get("/keys").text
