"""People drive the real service through a real browser."""

import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Desktop

pytestmark = pytest.mark.browser


def fill_in(page: Page) -> None:
    """A merge of the two experts that works."""
    page.goto("/jobs/new?method=task_arithmetic")
    page.get_by_label("Base").fill("acme/base")
    page.get_by_role("textbox", name="Source 1").fill("acme/expert1")
    page.get_by_role("textbox", name="Source 2").fill("acme/expert2")
    page.get_by_role("textbox", name="Source 2").press("Tab")


def store_token(page: Page) -> None:
    """Keeps a Hub token named ``push``."""
    page.goto("/keys")
    group = page.get_by_role("group", name="New Hub token")
    group.get_by_label("Name").fill("push")
    group.get_by_label("Token", exact=True).fill("hf_everyone")
    group.get_by_role("button", name="Keep it").click()
    expect(page.get_by_role("button", name="Forget push").first).to_be_visible()


def test_from_the_form_to_a_pushed_model_without_a_reload(page: Page, desktop: Desktop) -> None:
    store_token(page)
    fill_in(page)
    plan = page.locator("#plan")
    expect(plan).to_contain_text("This can work.")
    expect(plan).to_contain_text("Peak memory")
    page.get_by_label("Push to").fill("acme/merged")
    page.get_by_label("Hub token").select_option("push")
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/jobs/job_*")
    page.evaluate("window.neverReloaded = true")
    expect(page.locator("#live .state").first).to_have_text("Succeeded")
    expect(page.get_by_text("Pushed. It passed its checks.")).to_be_visible()
    assert page.evaluate("window.neverReloaded") is True
    assert desktop.hub.head("acme/merged")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    page.goto("/jobs")
    expect(page.locator("#rows")).to_contain_text("task_arithmetic → acme/merged")


def test_the_plan_follows_the_form_and_refuses_what_cannot_work(page: Page) -> None:
    fill_in(page)
    plan = page.locator("#plan")
    expect(plan).to_contain_text("This can work.")
    page.get_by_role("textbox", name="Source 2").fill("acme/stranger")
    page.get_by_role("textbox", name="Source 2").press("Tab")
    expect(plan).to_contain_text("Error:")
    page.get_by_role("button", name="Add a source").click()
    page.get_by_role("textbox", name="Source 3").fill("acme/expert2")
    page.get_by_role("button", name="Remove source 2").click()
    expect(page.get_by_role("textbox", name="Source 3")).to_have_count(0)
    expect(page.get_by_role("textbox", name="Source 2")).to_have_value("acme/expert2")
    expect(plan).to_contain_text("This can work.")
    page.get_by_label("Method", exact=True).select_option("ties")
    expect(page.get_by_label("Density")).to_be_visible()
    expect(page.get_by_role("banner")).to_have_count(1)
    assert page.evaluate("document.querySelectorAll('#draft').length") == 1
    page.get_by_role("button", name="YAML").click()
    expect(page.get_by_role("textbox", name="Recipe")).to_be_visible()
    assert "method: ties" in page.get_by_role("textbox", name="Recipe").input_value()


def test_who_clicks_twice_sends_once(page: Page) -> None:
    fill_in(page)
    sent: list[str] = []

    def take(route: Route) -> None:
        sent.append(route.request.method)
        route.fulfill(status=204)

    page.route("**/jobs/new", take)
    for _ in range(2):
        page.get_by_role("button", name="Start the job").click()
        page.wait_for_timeout(100)
    assert sent == ["POST"]
    page.get_by_role("button", name="YAML").click()
    page.wait_for_timeout(100)
    assert sent == ["POST", "POST"]


def test_a_search_for_a_front_is_corrected_and_found(page: Page, desktop: Desktop) -> None:
    """The browser notes that the first answer is a refusal."""
    texts = desktop.hub.store.root / "datasets" / "acme" / "texts" / "texts.jsonl"
    texts.parent.mkdir(parents=True)
    texts.write_text('{"text": "to be or not to be"}\n{"text": "one and two and three"}\n')
    page.goto("/jobs/search")
    page.get_by_label("Recipe").fill(
        "base: acme/base\nsources: [acme/expert1, acme/expert2]\nsteps: [{method: ties, scale: 1.5}]"
    )
    page.get_by_label("What may vary").fill("scale: {at: steps.ties.scale, values: [0.5, 1]}")
    page.get_by_label("Method", exact=True).select_option("grid")
    page.get_by_role("textbox", name="Name").fill("texts")
    page.get_by_label("Data").fill("acme/texts:texts.jsonl")
    page.get_by_label("Objectives").fill("texts\ntexts perplexity")
    plan = page.locator("#plan")
    page.get_by_label("Seed").fill("three")
    page.get_by_label("Seed").press("Tab")
    expect(page.locator("#seed-wrong")).to_have_text("'three' is not a whole number.")
    expect(page.get_by_label("Seed")).to_have_accessible_description(re.compile("not a whole number"))
    page.get_by_role("button", name="Add an evaluation set").click()
    page.get_by_role("button", name="Remove evaluation set 2").click()
    expect(page.get_by_role("button", name="Remove evaluation set 2")).to_have_count(0)
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Seed").press("Tab")
    expect(plan).to_contain_text("This can work.")
    expect(plan).to_contain_text("Candidates are made and scored in memory")
    expect(plan).to_contain_text("2 at most")
    expect(page.locator("#seed-wrong")).to_have_count(0)
    expect(page.get_by_label("Seed")).not_to_have_attribute("aria-invalid", "true")
    page.get_by_label("Preference").fill("1, 2")
    page.get_by_label("Reference", exact=True).fill("-99")
    page.get_by_role("button", name="Start the search").click()
    expect(page.locator("#reference-wrong")).to_have_text("reference needs one score an objective")
    expect(page.get_by_label("Reference", exact=True)).to_have_accessible_description(
        re.compile("one score an objective")
    )
    expect(page.get_by_label("Seed")).to_have_value("3")
    page.get_by_label("Reference", exact=True).fill("-99, -99999")
    page.get_by_role("button", name="Start the search").click()
    page.wait_for_url("**/jobs/job_*")
    expect(page.locator("#live .state").first).to_have_text("Succeeded")
    expect(page.locator("#live")).to_contain_text("hypervolume")
    expect(page.locator("#live")).to_contain_text("The recipe as it was sent")
    expect(page.get_by_role("button", name="Merge trial 2")).to_be_visible()
    page.get_by_label("texts perplexity", exact=True).fill("1")
    page.get_by_role("button", name="Choose a point").click()
    expect(page.locator("#chosen")).to_contain_text("measured points it has the largest mean")
    expect(page.locator("#live")).to_contain_text("suits the preference")
    assert all("status of 422" in each for each in desktop.complaints)
    desktop.complaints.clear()
