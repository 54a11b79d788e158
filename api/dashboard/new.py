"""The page of a new merge: the form, filled in from a method or an earlier job."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from api.dashboard.draft import PUBLISH, SET_KINDS, Draft, methods_by_kind
from api.dashboard.ordering import EarlierAsked, earlier_order, form_page, takes_orders
from api.dashboard.told import DTYPES
from api.dashboard.visit import PageRoute, Visit, Visitor, see

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/jobs/new")
def blank(
    visit: Visitor,
    method: Annotated[str, Query(max_length=64)] = "",
    from_: EarlierAsked = "",
) -> Response:
    """An empty form, one that begins with a method, or one filled in from an earlier job."""
    visit.caller.require("merges:write")
    earlier = earlier_order(visit, from_)
    if earlier.get("kind") == "search":
        return see(f"/jobs/search?from={from_}")
    return _form(visit, Draft.from_order(earlier) if earlier else Draft.with_method(method))


def _form(visit: Visit, draft: Draft, plan: dict[str, Any] | None = None, status: int = 200) -> Response:
    return form_page(
        visit,
        "new.html",
        "/jobs/new",
        plan,
        status,
        draft=draft,
        groups=methods_by_kind(),
        publish=PUBLISH,
        dtypes=DTYPES,
        set_kinds=SET_KINDS,
    )


takes_orders(router, "/jobs/new", Draft.from_form, _form)
