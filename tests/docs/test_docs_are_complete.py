"""Documentation cannot fall behind: every setting, route, method and error code is named in it."""

import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest

from merge.catalog import catalogue
from settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_every_setting_is_documented() -> None:
    text = (DOCS / "operations.md").read_text()
    missing = [name for name in Settings.model_fields if f"MERGERY_{name.upper()}" not in text]
    assert not missing


def test_every_route_is_documented() -> None:
    text = (DOCS / "api.md").read_text()
    paths = json.loads((DOCS / "openapi.json").read_text())["paths"]
    assert len(paths) > 20
    missing = [path for path in paths if f"`{path.removeprefix('/v1')}" not in text and f"{path}`" not in text]
    assert not missing


def test_every_method_is_documented() -> None:
    text = (DOCS / "methods.md").read_text()
    missing = [name for name in catalogue() if f"## `{name}`" not in text]
    assert not missing


def error_codes() -> set[str]:
    codes: set[str] = set()
    for room in ("merge", "hub", "jobs", "worker", "scoring"):
        package = importlib.import_module(room)
        modules = [m.name for m in pkgutil.walk_packages(package.__path__, f"{room}.") if m.name.endswith("errors")]
        for name in modules:
            for thing in vars(importlib.import_module(name)).values():
                code = getattr(thing, "code", None) if isinstance(thing, type) else None
                if isinstance(code, str):
                    codes.add(code)
    return codes


def test_every_error_code_is_documented() -> None:
    codes = error_codes()
    assert len(codes) > 30
    documented = set(re.findall(r"^\| `([a-z0-9_]+)` \|", (DOCS / "errors.md").read_text(), flags=re.M))
    assert not codes - documented


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in DOCS.rglob("*.md")))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    source = ROOT / page
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", source.read_text())
    broken = [link for link in links if not (source.parent / link).exists()]
    assert not broken
