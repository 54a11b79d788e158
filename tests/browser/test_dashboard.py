"""People drive the real service through a real browser."""

import pytest
from playwright.sync_api import Page, expect

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
