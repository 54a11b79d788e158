"""Documentation cannot fall behind: settings are named, the rest is made from code."""

import re
import runpy
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.orm import Session, sessionmaker

from api.errors import KINDS
from api.metrics import Metrics, Rows
from jobs.lifecycle import EXPIRED, WORKER_LOST
from jobs.metrics import Counts
from merge.mergekit.translate import read_recipe
from merge.plan import check_recipe
from settings import Settings
from worker.metrics import Gpus

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


def test_every_code_of_the_api_is_explained() -> None:
    text = (DOCS / "errors.md").read_text()
    assert [code for code in [*KINDS, WORKER_LOST, EXPIRED] if f"| `{code}` |" not in text] == []


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in DOCS.rglob("*.md")))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    source = ROOT / page
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", source.read_text())
    broken = [link for link in links if not (source.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md")))
def test_recipes_that_pages_show_whole_are_sound(page: str) -> None:
    for text in re.findall(r"^```yaml\n(.*?)^```", (DOCS / page).read_text(), flags=re.M | re.S):
        if "\nsteps:" in text and "\nsources:" in f"\n{text}":
            found = check_recipe(read_recipe(text, "yaml").recipe)
            assert not [each.message for each in found if each.severity == "error"], text


@pytest.fixture
def metrics_of_code(sessions: sessionmaker[Session]) -> set[str]:
    """The name of every metric that any process serves."""
    registry = CollectorRegistry()
    Counts(registry)
    api = Metrics().registry.collect()
    found = [*registry.collect(), *api, *Gpus(lambda: "").collect(), *Rows(sessions.begin).collect()]
    return {each.name + ("_total" if each.type == "counter" else "") for each in found}


def test_the_metrics_that_the_docs_name_are_the_metrics_that_exist(metrics_of_code: set[str]) -> None:
    text = (DOCS / "operations.md").read_text()
    named = set(
        re.findall(r"`([a-z_]+)(?:\{[a-z,]+\})?`", text.partition("| metric |")[2].partition("Alert on")[0])
    )
    kinds = {"down", "up", "delivered", "retry", "dead", "gone", "stale", "state"}
    assert named - kinds == metrics_of_code


def test_alerts_use_metrics_that_exist(metrics_of_code: set[str]) -> None:
    alerts = (DOCS / "operations.md").read_text().partition("Alert on")[2].partition("\n## ")[0]
    words = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", " ".join(re.findall(r"`([^`]+)`", alerts))))
    words = {each.removesuffix("_bucket") for each in words} - {"histogram_quantile"}
    assert words and words <= metrics_of_code
