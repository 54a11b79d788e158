"""The pages of statistics that jobs measured on data: what is kept, and what one of them says of itself."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from api.dashboard.render import page
from api.dashboard.visit import CursorAsked, PageRoute, Visit, Visitor, after_of, older_than
from api.deps import found
from db import statistics
from db.models.statistic import Statistic

ROWS = 25
DEAD_SHOWN = 20
SHORT = 12
HERE = "/statistics"
SETTINGS = {"documents": "Documents, at most", "tokens": "Tokens a block", "rule": "Rule", "seed": "Seed"}

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/statistics")
def statistic_list(visit: Visitor, cursor: CursorAsked = "") -> Response:
    """The tenant's statistics, newest first."""
    visit.caller.require("merges:read")
    filters = {"page": "statistics"}
    after = after_of(visit, cursor, filters)
    with visit.desk.begin() as session:
        rows = statistics.page(session, visit.caller.tenant_id, limit=ROWS + 1, after=after)
    shown, older = [_row(each) for each in rows[:ROWS]], older_than(visit, rows, ROWS, filters)
    return page("statistics.html", here=HERE, csrf=visit.csrf, statistics=shown, older=older)


@router.get("/statistics/{digest}")
def statistic(visit: Visitor, digest: Annotated[str, Path(max_length=64)]) -> Response:
    """One of them: on what it was measured, and which channels were dead."""
    visit.caller.require("merges:read")
    return page("statistic.html", here=HERE, csrf=visit.csrf, **_shown(visit, digest))


def _shown(visit: Visit, digest: str) -> dict[str, Any]:
    with visit.desk.begin() as session:
        row = found(statistics.get(session, visit.caller.tenant_id, digest), "statistics", digest)
        manifest: Mapping[str, Any] = row.manifest
        settings: Mapping[str, Any] = manifest.get("settings", {})
        dead = {name: count for name, count in manifest.get("dead_channels", {}).items() if count}
        most = sorted(dead.items(), key=lambda each: (-each[1], each[0]))
        return {
            "statistic": _row(row) | {"model_sha256": row.model_sha256, "data_sha256": row.data_sha256},
            "settings": [(SETTINGS.get(name, name), value) for name, value in sorted(settings.items())],
            "notes": manifest.get("notes", ()),
            "measured": len(set(manifest.get("counted", {})) | set(manifest.get("shared", {}))),
            "unmeasured": len(manifest.get("unmeasured", ())),
            "documents": manifest.get("documents"),
            "dead": most[:DEAD_SHOWN],
            "more_dead": len(most) - len(most[:DEAD_SHOWN]),
            "dead_channels": sum(dead.values()),
        }


def _row(row: Statistic) -> dict[str, Any]:
    return {
        "digest": row.digest,
        "short": row.digest[:SHORT],
        "model": _short_commit(row.model),
        "kinds": ", ".join(kind.replace("_", " ") for kind in row.kinds),
        "data": _short_commit(row.data),
        "tokens": row.tokens,
        "size": row.size,
        "created_at": row.created_at,
        "last_used_at": row.last_used_at,
    }


def _short_commit(name: str) -> str:
    """A name with its commit, of which the first letters tell enough."""
    head, at, rest = name.partition("@")
    commit, colon, file = rest.partition(":")
    return f"{head}{at}{commit[:SHORT]}{colon}{file}"
