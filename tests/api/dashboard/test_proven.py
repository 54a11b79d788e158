"""What is known of methods and results is shown as tables and words, never as JSON."""

from typing import Any

from api.dashboard.proven import checks_of, evidence_of
from api.dashboard.render import coded, short_name
from api.dashboard.searches import failures_of
from api.dashboard.views import job_row
from db.models.evaluation import Evaluation
from db.models.trial import Trial
from jobs import lifecycle, recording
from merge.evidence import evidence
from tests.api.dashboard.conftest import Site
from tests.api.dashboard.test_searches import searched
from tests.factories import make_running

VITALS: dict[str, Any] = {"bits_per_byte": 9.0768, "entropy": 0.91, "repetition": None}
DETAIL: dict[str, Any] = {
    "ok": True,
    "causal": True,
    "parameters": 13008,
    "generated": "",
    "findings": [
        {"severity": "warning", "code": "loss_worse_than_parents", "message": "It takes more bits."}
    ],
    "vitals": VITALS,
    "parents": {"base": VITALS | {"repetition": 0.25}},
}


def test_a_check_is_lines_findings_and_a_table() -> None:
    (check,) = checks_of([(Evaluation(name="check", kind="check", passed=True, detail=DETAIL), ())])
    assert check["said"] == ["causal: yes", "parameters: 13,008"]
    assert [each["message"] for each in check["findings"]] == ["It takes more bits."]
    assert check["vitals"] == [["result", "9.077", "0.91", "–"], ["base", "9.077", "0.91", "0.25"]]


def test_the_page_of_a_checked_job_has_no_json(site: Site) -> None:
    with site.sign_in().begin() as session:
        job, fence = make_running(session, caller=site.caller)
        lifecycle.enter_phase(session, fence, "merging")
        facts = {"name": "check", "kind": "check", "passed": True, "detail": DETAIL}
        recording.record_evaluation(session, fence, facts)
    page = site.get(f"/jobs/{job.id}").text
    assert "Warning: It takes more bits." in page and "Table of vital signs" in page
    assert "bits_per_byte" not in page
    assert page.index('<b>Downloading</b><span class="num">skipped') < page.index("<b>Merging</b>")
    assert '<b>Finalising</b><span class="num">to come' in page


def test_a_result_that_lies_nowhere_is_not_said_to_be_kept(site: Site) -> None:
    with site.sign_in().begin() as session:
        job, fence = make_running(session, caller=site.caller)
        lifecycle.succeed(session, fence, {"checked": None})
    assert "Kept here" not in site.get(f"/jobs/{job.id}").text


def test_a_result_that_failed_its_checks_is_no_good_news(site: Site) -> None:
    for passed, kind in ((True, "good"), (False, "warn")):
        with site.sign_in().begin() as session:
            job, fence = make_running(session, caller=site.caller)
            lifecycle.succeed(session, fence, {"folder": "/kept", "checked": passed})
        assert f'<div class="note {kind}"><strong>Kept here.' in site.get(f"/jobs/{job.id}").text


def test_the_evidence_of_a_method_is_a_row_a_bench(site: Site) -> None:
    told = evidence_of("ties")
    assert told is not None and evidence_of("no such") is None
    benches = evidence()["benches"]
    assert {row["title"] for row in told["rows"]} == {
        each["title"].partition(": ")[2]
        for name, each in benches.items()
        if name in evidence()["methods"]["ties"]
    }
    assert all(row["unit"] and row["average"] and row["value"] for row in told["rows"])
    without = evidence_of("slerp")
    assert without is not None and any("2 models" in row["as"] for row in without["rows"])
    page = site.sign_in().get("/methods/ties").text
    assert "Table of what was measured" in page and page.count("<tr>") == 1 + len(told["rows"])


def test_why_candidates_failed_is_said_once_a_reason() -> None:
    lost = [Trial(number=n, point={}, share=1.0, told={"values": None, "error": "no memory"}) for n in (3, 5)]
    fine = Trial(number=4, point={}, share=1.0, told={"values": [1.0]})
    assert failures_of([*lost, fine]) == ["Trial 3 failed: no memory"]
    assert failures_of([Trial(number=0, point={}, share=1.0, told={})]) == [
        "Trial 0 failed: no reason was kept"
    ]


def test_a_search_is_told_from_others_in_the_list(site: Site) -> None:
    job_id = searched(site.sign_in())
    assert "search by grid: task_arithmetic" in site.get("/jobs").text and job_id in site.get("/jobs").text
    assert "All jobs" in site.get("/jobs?state=cancelled").text
    assert "Make the first one" not in site.get("/jobs?state=cancelled").text


def test_commits_are_cut_and_code_is_marked() -> None:
    assert short_name("a/b@" + "12ab" * 10) == "a/b@12ab12ab12ab" and short_name("a/b@main") == "a/b@main"
    assert short_name("a/b@" + "12ab" * 16) == "a/b@" + "12ab" * 16
    assert coded("`a<b` & more") == "<code>a&lt;b</code> &amp; more"
    assert coded("``x: 1`` or `y`") == "<code>x: 1</code> or <code>y</code>"


def test_a_job_that_names_no_method_has_the_name_of_its_kind(site: Site) -> None:
    with site.sign_in().begin() as session:
        job, _ = make_running(session, caller=site.caller)
        job.kind, job.method, job.recipe = "score", None, {"models": [{"model": "a/b@" + "0" * 40}]}
        row = job_row(job)
        session.rollback()
    assert (row["title"], row["summary"]) == ("score", "a/b@000000000000")


def test_a_list_names_the_adapters_that_are_merged_and_not_their_base_twice(site: Site) -> None:
    lora = {"id": "a", "model": "a/base", "adapter": "a/lora@" + "0" * 40}
    with site.sign_in().begin() as session:
        job, _ = make_running(session, caller=site.caller)
        job.recipe = {"base": "a/base", "sources": [lora, {"id": "b", "model": "a/b", "adapter": "a/c"}]}
        row = job_row(job)
        session.rollback()
    assert row["summary"] == "a/lora@000000000000, a/b + a/c"
