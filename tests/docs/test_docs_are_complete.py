"""Documentation cannot fall behind: settings are named, the rest is made from code."""

import re
import runpy
from pathlib import Path

import pytest

from settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_every_setting_is_documented() -> None:
    text = (DOCS / "operations.md").read_text()
    missing = [name for name in Settings.model_fields if f"MERGERY_{name.upper()}" not in text]
    assert not missing


@pytest.mark.parametrize("page", ["routes.md", "methods.md", "errors.md"])
def test_reference_pages_are_what_the_code_says(page: str) -> None:
    pages = runpy.run_path(str(DOCS / "generate.py"), run_name="pages")["PAGES"]
    assert (DOCS / page).read_text() == pages[page](), "run `make docs`"


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in DOCS.rglob("*.md")))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    source = ROOT / page
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", source.read_text())
    broken = [link for link in links if not (source.parent / link).exists()]
    assert not broken
