"""The pages of webhook endpoints: the same functions as the API's, for people."""

import pytest

from jobs import webhooks
from jobs.keyring import Keyring
from tests.api.dashboard.conftest import Site
from tests.factories import TEST_SECRET, make_caller, make_job, make_key


@pytest.fixture
def endpoint(site: Site) -> str:
    """One endpoint of somebody who has signed in."""
    site.sign_in()
    site.post("/webhooks", url="https://example.org/hook", events=["merge.failed"])
    with site.begin() as session:
        return webhooks.list_endpoints(session, site.caller.tenant_id)[0].id


def test_the_list_leads_to_a_page_that_sends_a_test_and_shows_it(site: Site, endpoint: str) -> None:
    assert f'href="/webhooks/{endpoint}"' in site.get("/webhooks").text
    assert "Nothing yet." in site.get(f"/webhooks/{endpoint}").text
    assert site.post(f"/webhooks/{endpoint}/test").headers["location"] == f"/webhooks/{endpoint}"
    text = site.get(f"/webhooks/{endpoint}").text
    assert "endpoint.test" in text and "Pending" in text and "0 tries" in text


def test_a_refused_endpoint_keeps_what_was_chosen(site: Site) -> None:
    answer = site.sign_in().post("/webhooks", url="https://me:x@example.org/hook", events=["merge.failed"])
    assert answer.status_code == 422 and "must not carry a user name" in answer.text
    assert answer.text.count(" checked") == 1 and 'value="merge.failed" checked' in answer.text


def test_a_new_secret_is_shown_once_and_the_old_one_goes_on_for_a_day(site: Site, endpoint: str) -> None:
    rotated = site.post(f"/webhooks/{endpoint}/rotate-secret").text
    assert "whsec_" in rotated
    later = site.get(f"/webhooks/{endpoint}").text
    assert "whsec_" not in later and "Old secret signs until" in later


def test_an_endpoint_is_switched_off_and_on(site: Site, endpoint: str) -> None:
    site.post(f"/webhooks/{endpoint}/switch", enabled="no")
    text = site.get(f"/webhooks/{endpoint}").text
    assert "Switched off: disabled by its owner" in text and "Send a test" not in text
    refused = site.post(f"/webhooks/{endpoint}/test")
    assert refused.status_code == 409 and "enable it first" in refused.text
    site.post(f"/webhooks/{endpoint}/switch", enabled="yes")
    assert "Send a test" in site.get(f"/webhooks/{endpoint}").text


def test_a_message_that_was_sent_is_sent_again_under_its_id(site: Site, endpoint: str) -> None:
    site.post(f"/webhooks/{endpoint}/test")
    with site.begin() as session:
        (due,) = webhooks.claim_due(session, Keyring(TEST_SECRET), "test")
        webhooks.record_result(session, due, status_code=500, schedule=(0.0,), chance=0.5)
    text = site.get(f"/webhooks/{endpoint}").text
    assert "Dead" in text and "HTTP 500" in text and due.message_id in text
    path = f"/webhooks/{endpoint}/deliveries/{due.id}/redeliver"
    assert path in text and site.post(path).status_code == 303
    again = site.get(f"/webhooks/{endpoint}").text
    assert "Pending" in again and due.message_id in again


def test_many_deliveries_come_page_by_page(site: Site, endpoint: str) -> None:
    with site.begin() as session:
        row = webhooks.get_endpoint(session, site.caller.tenant_id, endpoint)
        ids = [webhooks.send_test(session, row).message_id for _ in range(30)]
    first = site.get(f"/webhooks/{endpoint}").text
    older = first.split(f'href="/webhooks/{endpoint}?cursor=')[1].split('"')[0]
    second = site.get(f"/webhooks/{endpoint}?cursor={older}").text
    assert ids[-1] in first and ids[0] not in first
    assert ids[0] in second and ids[-1] not in second


def test_another_tenants_endpoint_is_not_there(site: Site, endpoint: str) -> None:
    with site.begin() as session:
        stranger = make_caller(session, "another")
        theirs, _ = webhooks.create_endpoint(
            session, Keyring(TEST_SECRET), stranger.tenant_id, "https://example.org/x"
        )
        theirs_id = theirs.id
        delivery = webhooks.send_test(session, theirs).id
    assert site.get(f"/webhooks/{theirs_id}").status_code == 404
    for action in ("test", "rotate-secret", "switch", "delete"):
        assert site.post(f"/webhooks/{theirs_id}/{action}").status_code == 404
    for mine in (endpoint, theirs_id):
        assert site.post(f"/webhooks/{mine}/deliveries/{delivery}/redeliver").status_code == 404


def test_a_jobs_page_leads_to_what_its_own_webhook_was_sent(site: Site) -> None:
    with site.begin() as session:
        order = {"webhook": {"url": "https://example.org/mine"}}
        job = make_job(session, site.caller, **order)
        (hook,) = webhooks.list_endpoints(session, site.caller.tenant_id, job)
        path, leads = f"/jobs/{job.id}", f'href="/webhooks/{hook.id}"'
        _, reader = make_key(session, "default", "merges:read")
    assert leads in site.sign_in().get(path).text
    site.key = reader
    assert leads not in site.sign_in().get(path).text
