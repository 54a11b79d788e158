"""What goes wrong outside of any page is shown as a page to whoever came with a browser."""

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from tests.api.dashboard.conftest import Site

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PROBLEM = "application/problem+json"


@pytest.mark.parametrize(
    ("path", "status"), [("/jobs/a/b/c", 404), ("/static/none.css", 404), ("/jobs/job_x/cancel", 405)]
)
def test_an_address_without_a_page_has_one_that_says_so(site: Site, path: str, status: int) -> None:
    for signed_in in (False, True):
        answer = site.get(path, **BROWSER)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert "To the jobs" in answer.text and answer.text.count("There is nothing here") in (0, 2)
        assert ("Sign out" in answer.text) is signed_in
        if not signed_in:
            site.sign_in()
    assert site.get(path).headers["content-type"] == PROBLEM


def test_what_programs_ask_for_is_never_a_page(site: Site) -> None:
    for path in ("/v1/none", "/v1/jobs/job_x"):
        assert site.get(path, **BROWSER).headers["content-type"] == PROBLEM


def test_a_form_that_is_too_large_is_refused_with_a_page(site: Site) -> None:
    site.sign_in()
    large = {"document": "x" * (site.client.app.state.desk.settings.max_body_bytes + 1)}  # type: ignore[attr-defined]
    answer = site.post("/jobs/new", BROWSER, **large)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert "The request body is too large" in answer.text and "Sign out" in answer.text
    noted = site.post("/jobs/new/plan", {**BROWSER, "HX-Request": "true"}, **large)
    assert noted.headers["HX-Retarget"] == "#plan" and "<html" not in noted.text


@pytest.mark.parametrize("charset", ["punycode", "undefined", "unicode_escape"])
def test_a_form_in_a_charset_that_does_not_fit_is_malformed(site: Site, charset: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="next"\r\n\r\n\xff\\ud800\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    answer = site.client.post("/login", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400 and "cannot be read" in answer.text


def test_pages_lead_to_the_description_of_the_api_only_where_there_is_one(site: Site) -> None:
    assert "/openapi.json" in site.get("/login").text
    settings = site.client.app.state.desk.settings  # type: ignore[attr-defined]
    with TestClient(create_app(settings.model_copy(update={"docs_enabled": False}))) as client:
        assert "API description" not in client.get("/login").text
