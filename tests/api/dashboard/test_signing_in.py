"""Who may see the pages, and who may change something through them."""

from dataclasses import replace

import pytest

from tests.api.dashboard.conftest import Site
from tests.factories import make_key

PAGES = [
    "/jobs",
    "/jobs/rows",
    "/jobs/new",
    "/jobs/job_x",
    "/jobs/job_x/live",
    "/methods",
    "/keys",
    "/webhooks",
]


@pytest.mark.parametrize("path", PAGES)
def test_a_stranger_is_sent_to_sign_in_and_comes_back(site: Site, path: str) -> None:
    answer = site.get(path)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=" + path.replace("/", "%2F")


def test_a_stranger_in_the_background_is_sent_to_sign_in_too(site: Site) -> None:
    answer = site.get("/jobs/rows", **{"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (204, "/login?next=%2Fjobs")


def test_a_stream_that_is_refused_says_so_and_leaves_the_page_as_it_is(site: Site) -> None:
    """A status that is no refusal would be asked for again every half second."""
    answer = site.get("/jobs/job_x/live", **{"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, "/login?next=%2Fjobs")
    answer = site.sign_in().get("/jobs/job_x/live", **{"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Reswap"], answer.text) == (404, "none", "")


def test_a_form_outlives_the_session_it_was_begun_in(site: Site) -> None:
    """To be led away from it would empty it; who signs in elsewhere with the same key goes on with it."""
    signer = site.sign_in().client.app.state.desk.signer  # type: ignore[attr-defined]
    before = signer.read(site.client.cookies[signer.cookie])
    over = signer.sign(replace(before, expires_at=1))
    site.client.cookies.set(signer.cookie, over, domain="testserver.local")
    assert site.get("/jobs").status_code == 303
    noted = site.post("/jobs/new/plan", {"HX-Request": "true"}, **site.draft())
    assert "session has ended" in noted.text and noted.headers["HX-Retarget"] == "#plan"
    assert "HX-Redirect" not in noted.headers
    kept = site.post("/jobs/new", action="submit", **site.draft())
    assert kept.status_code == 401 and "reload this page" in kept.text
    token = site.csrf
    assert site.post("/login", key=site.key).status_code == 303
    site.csrf = token
    assert "This can work." in site.post("/jobs/new/plan", **site.draft()).text
    with site.begin() as session:
        _, other = make_key(session)
    assert site.post("/login", key=other).status_code == 303
    assert site.post("/jobs/new/plan", **site.draft()).status_code == 403


def test_a_key_opens_a_session_that_no_script_can_read(site: Site) -> None:
    answer = site.post("/login", key=site.key, next="/methods")
    cookie = answer.headers["set-cookie"].lower()
    assert (answer.status_code, answer.headers["location"]) == (303, "/methods")
    assert "httponly" in cookie and "samesite=lax" in cookie
    assert site.key not in cookie


def test_under_https_the_cookie_belongs_to_this_host_alone(site: Site) -> None:
    signer = site.client.app.state.desk.signer  # type: ignore[attr-defined]
    assert type(signer)(signer.key, https=True).cookie.startswith("__Host-")


def test_a_wrong_key_is_refused_in_words(site: Site) -> None:
    answer = site.post("/login", key="mk_live_nonsense")
    assert answer.status_code == 401
    assert "no API key of ours" in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("sent_from", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}])
def test_another_site_cannot_sign_somebody_in(site: Site, sent_from: dict[str, str]) -> None:
    answer = site.post("/login", sent_from, key=site.key)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("onward", ["https://evil.example/", "//evil.example", "/\\evil.example", "jobs"])
def test_signing_in_never_leads_to_another_site(site: Site, onward: str) -> None:
    assert site.post("/login", key=site.key, next=onward).headers["location"] == "/jobs"


@pytest.mark.parametrize(
    "path", ["/jobs/new", "/keys", "/webhooks", "/logout", "/jobs/job_x/cancel", "/tokens"]
)
def test_a_form_without_the_sessions_token_changes_nothing(site: Site, path: str) -> None:
    site.sign_in().csrf = "0" * 64
    answer = site.post(path, name="x", action="submit")
    assert answer.status_code == 403
    assert "The form is stale" in answer.text


def test_signing_out_ends_the_session(site: Site) -> None:
    site.sign_in()
    assert site.get("/jobs").status_code == 200
    site.post("/logout")
    assert site.get("/jobs").status_code == 303


def test_a_session_ends_with_its_key(site: Site) -> None:
    site.sign_in().post(f"/keys/{site.caller.key_id}/revoke")
    assert site.get("/jobs").status_code == 303


def test_a_key_that_may_only_read_cannot_start_or_cancel(site: Site) -> None:
    with site.begin() as session:
        _, site.key = make_key(session, "default", "merges:read")
    site.sign_in()
    assert site.get("/jobs").status_code == 200
    assert site.post("/jobs/new", action="submit", **site.draft()).status_code == 403
    assert site.get("/keys").status_code == 403


def test_a_key_cannot_hand_on_what_it_may_not_do(site: Site) -> None:
    with site.begin() as session:
        _, site.key = make_key(session, "default", "keys")
    answer = site.sign_in().post("/keys", name="more", scopes=["admin"])
    assert answer.status_code == 403
    assert 'id="secret"' not in answer.text
    assert 'value="more"' in answer.text and 'value="admin" checked' in answer.text
    assert answer.text.count(" checked") == 1


def test_every_page_forbids_what_does_not_come_from_here(site: Site) -> None:
    answer = site.sign_in().get("/jobs")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert " style=" not in answer.text and "onclick" not in answer.text


def test_htmx_does_not_start_before_its_extensions_are_there(site: Site) -> None:
    scripts = [line for line in site.get("/login").text.splitlines() if "<script" in line]
    assert "htmx" in scripts[0] and "defer" not in scripts[0]
    assert all("defer" in line for line in scripts[1:])


def test_a_form_with_a_nul_is_malformed(site: Site) -> None:
    answer = site.sign_in().post("/keys", name="a\0b", scopes="merges:read")
    assert answer.status_code == 400 and "NUL" in answer.text


def test_a_session_whose_key_was_revoked_is_asked_for_another_key(site: Site) -> None:
    site.sign_in().post(f"/keys/{site.caller.key_id}/revoke")
    answer = site.get("/login")
    assert answer.status_code == 200 and "API key" in answer.text
    with site.begin() as session:
        _, site.key = make_key(session)
    site.sign_in()
    assert site.get("/login?next=/methods").headers["location"] == "/methods"
