"""The pages serve everybody: light or dark, wide or narrow, by keyboard, read aloud, without JavaScript."""

import re
from typing import Literal

import pytest
from playwright.sync_api import Page, Route, expect

from db.models.job import Job
from db.models.trial import Trial
from jobs import lifecycle, recording, webhooks
from jobs.keyring import Keyring
from jobs.keys import revoke_key
from jobs.lifecycle import Fence
from jobs.request import read_order
from jobs.submit import submit
from tests.api.test_jobs import SURVEY
from tests.browser.conftest import AXE, Desktop
from tests.factories import RECIPE, TEST_SECRET, make_key, make_rules, make_running

pytestmark = pytest.mark.browser

LOOKS: list[tuple[Literal["light", "dark"], int]] = [("light", 1280), ("dark", 360)]
RUN_AXE = """async () => (await axe.run()).violations.map(
    each => each.id + ": " + each.nodes.map(node => node.target.join(" ")).join(", "))"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
WORD = "x" * 300
MODELS = [f"model_{number}" for number in range(12)]
TOTAL = SURVEY["groups"][0]["all"] | {
    "cosine": [[1.0] * len(MODELS)] * len(MODELS),
    **{told: dict.fromkeys(MODELS, 0.5) for told in ("norms", "prepared", "kept", "followed")},
}
REPORT = SURVEY | {"groups": [SURVEY["groups"][0] | {"models": MODELS, "all": TOTAL}]}
SHARD = "model-00001-of-00002.safetensors"


def begin_job(desktop: Desktop) -> tuple[Job, Fence]:
    """A running job of nobody's worker, with some progress behind it."""
    with desktop.begin() as session:
        job, fence = make_running(
            session,
            "nobody",
            3600.0,
            caller=desktop.caller,
            output={"repo": "acme/a-rather-long-name-of-a-model"},
        )
        lifecycle.enter_phase(session, fence, "merging")
    tell(desktop, fence, 0)
    return job, fence


def tell(desktop: Desktop, fence: Fence, done: int) -> None:
    """Progress, as an event too."""
    with desktop.begin() as session:
        session.get(Job, fence.job_id).progress_at = None
    with desktop.begin() as session:
        numbers = {"fraction": done / 100, "bytes_done": done * 10_000_000, "bytes_total": 1_000_000_000}
        more = {"tensors_done": done, "tensors_total": 100, "eta_seconds": 100 - done}
        lifecycle.report_progress(session, fence, numbers | more)


def end_job(desktop: Desktop, fence: Fence) -> None:
    """The job's success, with scores, checks and artifacts."""
    with desktop.begin() as session:
        recording.record_artifact(session, fence, "shard", SHARD, "ab" * 32, 4_000_000_000)
        for name, metric in (("held-out texts", "perplexity"), ("questions", "accuracy")):
            scores = [
                {"subject": subject, "metric": metric, "value": value, "stderr": 0.02}
                for subject, value in (("result", 0.7), ("base", 0.4), ("math", 0.5), ("code", 0.6))
            ]
            kind = "perplexity" if metric == "perplexity" else "choice"
            recording.record_evaluation(session, fence, {"name": name, "kind": kind, "scores": scores})
        check = {"name": "check", "kind": "check", "passed": True, "detail": {"loads": True}}
        recording.record_evaluation(session, fence, check)
        recording.record_report(session, fence, REPORT)
        lifecycle.succeed(session, fence, {"repo": "acme/merged", "url": "http://127.0.0.1:9/acme/merged"})


def search_job(desktop: Desktop) -> str:
    """A running search with numbers that fill more than a narrow window, and one candidate that failed."""
    numbers = ("math", "code", "density", "scale")
    order = {
        "kind": "search",
        "recipe": RECIPE | {"steps": [{"method": "ties"}]},
        "search": {
            "method": "tpe",
            "space": {
                name: {
                    "at": f"{'sources' if name in ('math', 'code') else 'steps'}.{place}",
                    "low": 0.1,
                    "high": 1,
                }
                for name, place in zip(
                    numbers, ("math.weight", "code.weight", "ties.density", "ties.scale"), strict=True
                )
            },
            "objectives": [
                {"set": "texts", "metric": "bits_per_byte"},
                {"set": "texts", "metric": "perplexity"},
            ],
        },
        "evaluate": {"sets": [{"name": "texts", "kind": "perplexity", "data": {"hub": "a/b", "file": "c"}}]},
    }
    with desktop.begin() as session:
        job_id = submit(session, desktop.caller, read_order(order), None, make_rules()).id
        claimed = lifecycle.claim(session, job_id, "nobody", 3600.0)
        assert claimed is not None
        lifecycle.enter_phase(session, lifecycle.fence_of(claimed), "searching")
        for number in range(4):
            told = {"error": "no memory"} if number == 0 else {"values": [-1.25 * number, -10.5 / number]}
            facts = {
                "key": str(number),
                "share": 1.0,
                "number": number,
                "point": dict.fromkeys(numbers, 0.123456),
            }
            told = {"share": 1.0, **told}
            session.add(Trial(root_id=claimed.root_id, **facts, told=told, elapsed=1.0))
    return job_id


@pytest.fixture(scope="module")
def places(desktop: Desktop) -> list[str]:
    """Every page, with jobs in every kind of state."""
    moving, fence = begin_job(desktop)
    tell(desktop, fence, 40)
    done, fence = begin_job(desktop)
    end_job(desktop, fence)
    broken, fence = begin_job(desktop)
    with desktop.begin() as session:
        tensor = "model.layers.3.mlp.down_proj.weight"
        finding = {
            "severity": "error",
            "code": "not_finite",
            "message": f"{tensor} holds NaN",
            "tensor": tensor,
        }
        lifecycle.fail(session, fence, "not_finite", f"{tensor} of math holds NaN.", [finding])
    with desktop.begin() as session:
        routing, fence = make_running(session, "nobody", 3600.0, caller=desktop.caller)
        routing.kind, routing.recipe = "router", {"bundle": "acme/a-rather-long-name-of-a-bundle"}
        told = {"kind": "linear", "members": ["math", "code"], "examples": 16, "accuracy": 1.0}
        lifecycle.succeed(session, fence, {"folder": "/kept", "router": told})
    fixed = [
        "/jobs",
        "/jobs?state=expired",
        "/jobs/new",
        "/jobs/new?method=dare",
        "/jobs/score",
        "/jobs/search",
        "/jobs/router?bundle=acme/bundle",
        f"/jobs/new?from={done.id}",
    ]
    more = ["/methods", "/methods/ties", "/statistics", "/keys", "/webhooks", "/jobs/nowhere"]
    jobs = [*(job.id for job in (moving, done, broken, routing)), search_job(desktop)]
    hook = f"/webhooks/{failing_endpoint(desktop)}"
    return [*fixed, *more, hook, f"/jobs/{done.id}/report", *(f"/jobs/{each}" for each in jobs)]


def failing_endpoint(desktop: Desktop) -> str:
    """An endpoint of which a delivery failed for a reason that is one long word."""
    keyring = Keyring(TEST_SECRET)
    with desktop.begin() as session:
        row, _ = webhooks.create_endpoint(
            session, keyring, desktop.caller.tenant_id, f"https://example.org/{WORD}", ["endpoint.test"]
        )
        delivery = webhooks.send_test(session, row)
        delivery.state, delivery.error = "dead", WORD
        return row.id


def faults_of(page: Page) -> list[str]:
    """What axe-core finds, and whether the page is wider than the window."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    found: list[str] = page.evaluate(RUN_AXE)
    wide = page.evaluate(OVERFLOW)
    return [*found, *([f"{wide} px too wide"] if wide > 0 else [])]


def test_no_page_has_a_barrier_or_scrolls_sideways(desktop: Desktop, places: list[str]) -> None:
    context = desktop.context()
    desktop.complaints.clear()
    page = context.new_page()
    faults = {}
    for path in places:
        page.goto(path)
        for scheme, width in LOOKS:
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 800})
            faults[path, scheme, width] = faults_of(page)
    context.close()
    assert {look: each for look, each in faults.items() if each} == {}
    assert [each for each in desktop.complaints if "status of 404" not in each] == []


def test_what_an_endpoint_hears_has_the_width_of_the_page(page: Page, desktop: Desktop) -> None:
    page.goto(f"/webhooks/{failing_endpoint(desktop)}")
    box = page.locator("dd").first.bounding_box()
    assert box is not None and box["width"] > 600


def test_the_sign_in_page_has_no_barrier(desktop: Desktop) -> None:
    context = desktop.context(signed_in=False, viewport={"width": 360, "height": 700})
    page = context.new_page()
    page.goto("/login")
    page.get_by_label("API key").fill("mk_live_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("no API key of ours")
    assert faults_of(page) == []
    context.close()


def test_over_plain_http_of_another_host_one_can_sign_in(desktop: Desktop) -> None:
    """Browsers say nothing of where a form comes from there but its origin."""
    context = desktop.context(signed_in=False)
    page = context.new_page()
    page.goto(f"http://mergery.test:{desktop.stack.api_port}/login")
    page.get_by_label("API key").fill(desktop.stack.key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/jobs")
    context.close()


def test_a_running_job_is_followed_live_with_its_chart(page: Page, desktop: Desktop) -> None:
    job, fence = begin_job(desktop)
    page.goto(f"/jobs/{job.id}")
    for done in (10, 20, 30):
        tell(desktop, fence, done)
        expect(page.locator("#live")).to_contain_text(f"{done} of 100")
    expect(page.locator("#throughput-bytes canvas")).to_be_visible()
    expect(page.locator("#said-bytes")).to_contain_text("/s, mean")
    end_job(desktop, fence)
    expect(page.locator("#live .state").first).to_have_text("Succeeded")
    expect(page.locator("#throughput-bytes canvas")).to_be_visible()
    expect(page.get_by_role("heading", name="Scores")).to_be_visible()


def test_a_stream_that_is_refused_at_first_is_asked_for_again(page: Page, desktop: Desktop) -> None:
    job, fence = begin_job(desktop)
    answers = [429, 503]

    def refuse(route: Route) -> None:
        if answers:
            route.fulfill(status=answers.pop(), headers={"Retry-After": "0.1"}, body="come back later")
        else:
            route.fallback()

    page.route("**/live*", refuse)
    page.goto(f"/jobs/{job.id}")
    tell(desktop, fence, 30)
    expect(page.locator("#live")).to_contain_text("30 of 100")
    assert answers == [] and len(desktop.complaints) == 2
    desktop.complaints.clear()
    end_job(desktop, fence)


def test_a_page_whose_key_is_revoked_leads_to_the_sign_in_page(desktop: Desktop) -> None:
    job, fence = begin_job(desktop)
    with desktop.begin() as session:
        caller, key = make_key(session)
    context = desktop.context(signed_in=False)
    page = context.new_page()
    page.goto(f"/login?next=/jobs/{job.id}")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    tell(desktop, fence, 30)
    expect(page.locator("#live")).to_contain_text("30 of 100")
    with desktop.begin() as session:
        revoke_key(session, caller, caller.key_id)
    tell(desktop, fence, 40)
    page.wait_for_url(f"**/login?next=%2Fjobs%2F{job.id}")
    context.close()
    end_job(desktop, fence)


def test_a_measuring_job_charts_its_tokens(page: Page, desktop: Desktop) -> None:
    job, fence = begin_job(desktop)
    with desktop.begin() as session:
        lifecycle.enter_phase(session, fence, "measuring")
    page.goto(f"/jobs/{job.id}")
    for done in (0, 2000, 4000, 6000):
        with desktop.begin() as session:
            session.get(Job, fence.job_id).progress_at = None
        with desktop.begin() as session:
            told = {"tokens_done": done, "tokens_total": 8000, "tokens_per_second": 1234, "eta_seconds": 9}
            lifecycle.report_progress(session, fence, told)
        expect(page.locator("#live")).to_contain_text(f"{done:,} of 8,000")
    expect(page.locator("#live")).to_contain_text("1,234 tokens/s")
    expect(page.locator("#throughput-tokens canvas")).to_be_visible()
    expect(page.locator("#said-tokens")).to_contain_text("tokens/s, mean")
    expect(page.locator("#throughput-bytes")).to_be_hidden()
    end_job(desktop, fence)


def test_the_list_follows_its_jobs(page: Page, desktop: Desktop) -> None:
    job, fence = begin_job(desktop)
    page.goto("/jobs")
    row = page.locator(f"#row-{job.id}")
    expect(row).to_contain_text("Running")
    end_job(desktop, fence)
    expect(row).to_contain_text("Succeeded")


def test_a_job_is_started_by_keyboard_alone(desktop: Desktop) -> None:
    context = desktop.context(signed_in=False)
    page = context.new_page()
    page.goto("/login")
    # The browser gives the focus when it first draws the page, which may come after its load.
    expect(page.locator("input[autofocus]")).to_be_focused()
    page.keyboard.type(desktop.stack.key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.goto("/jobs/new")
    for name, text in (
        ("base", "acme/base"),
        ("sources-0-model", "acme/expert1"),
        ("sources-1-model", "acme/expert2"),
    ):
        tab_to(page, name)
        page.keyboard.type(text)
    tab_to(page, "submit")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/jobs/job_"))
    context.close()


def tab_to(page: Page, name: str) -> None:
    """Presses Tab until the control of that name (or value) has the focus, which must be visible."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name || ''") == name or name == page.evaluate(
            "document.activeElement.value || ''"
        ):
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            return
    raise AssertionError(f"{name} cannot be reached with Tab")


def test_a_job_is_started_and_seen_without_javascript(desktop: Desktop) -> None:
    context = desktop.context(java_script_enabled=False)
    page = context.new_page()
    page.goto("/jobs/new")
    page.get_by_label("Method", exact=True).select_option("task_arithmetic")
    page.get_by_role("button", name="Show its settings").click()
    expect(page.get_by_label("Method", exact=True)).to_have_value("task_arithmetic")
    page.get_by_label("Base").fill("acme/base")
    page.get_by_role("textbox", name="Source 1").fill("acme/expert1")
    page.get_by_role("button", name="Remove source 2").click()
    page.get_by_role("button", name="Plan", exact=True).click()
    expect(page.locator("#plan")).to_contain_text("This can work.")
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url(re.compile(r"/jobs/job_"))
    expect(page.locator("#live .state").first).to_have_text(re.compile("Queued|Running|Succeeded"))
    context.close()
