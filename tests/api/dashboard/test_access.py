"""That every page and every form asks who is there, and lets in who may."""

import importlib
import pkgutil

import api.dashboard
from tests.api.dashboard.conftest import Site
from tests.factories import make_key

SCOPES = ("merges:read", "merges:write", "webhooks", "keys")
TO_SIGN_IN = {"/", "/login"}
FOR_EVERYBODY = {*TO_SIGN_IN, "/logout", "/methods", "/methods/{name}"}
"""What every key may see and do."""
IDS = ("job_id", "endpoint_id", "delivery_id", "key_id", "credential_id", "digest", "name")


def addresses() -> list[tuple[str, str]]:
    """(method, path) of every page and form, ids filled in of things that are not there."""
    modules = (each.name for each in pkgutil.iter_modules(api.dashboard.__path__, "api.dashboard."))
    routers = (getattr(importlib.import_module(name), "router", None) for name in modules)
    routes = (route for router in routers if router for route in router.routes)
    return sorted((method, route.path) for route in routes for method in route.methods)


ALL = addresses()


def address(path: str) -> str:
    for name in IDS:
        path = path.replace("{" + name + "}", "0" * 64)
    return path.replace("{number}", "1").replace("{place}", "1")


def test_every_page_sends_a_stranger_to_sign_in_and_every_form_refuses_one(site: Site) -> None:
    for method, path in ALL:
        if path in TO_SIGN_IN:
            continue
        answer = site.client.request(method, address(path))
        assert answer.status_code == (303 if method == "GET" else 401), (method, path)
        assert method == "POST" or answer.headers["location"].startswith("/login"), path
    assert len(ALL) > 40


def test_every_form_needs_the_sessions_token(site: Site) -> None:
    site.sign_in().csrf = "0" * 64
    for method, path in ALL:
        if method == "POST" and path not in TO_SIGN_IN:
            answer = site.post(address(path))
            assert answer.status_code == 403 and "The form is stale" in answer.text, path


def test_every_page_and_form_needs_one_right(site: Site) -> None:
    let_in: dict[tuple[str, str], set[str]] = {}
    for scope in SCOPES:
        with site.begin() as session:
            _, site.key = make_key(session, "default", scope)
        site.sign_in()
        for method, path in ALL:
            if path in FOR_EVERYBODY:
                continue
            answer = site.get(address(path)) if method == "GET" else site.post(address(path))
            if answer.status_code != 403:
                let_in.setdefault((method, path), set()).add(scope)
    assert all(len(scopes) == 1 for scopes in let_in.values()), let_in
    assert len(let_in) == len([each for each in ALL if each[1] not in FOR_EVERYBODY])
