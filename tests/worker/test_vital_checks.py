"""Real experts: a sound merge is published, a broken one is not unless the caller says so."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from db import evaluations
from tests import tiny
from tests.worker.conftest import Floor
from worker.evaluation import Evaluator

FAMILY = Path(__file__).resolve().parents[2] / "demo" / "family"
REPO = "team/merged"


@pytest.fixture
def trained(floor: Floor) -> Floor:
    """The floor with the committed family: a base and two experts that were really trained."""
    for name in ("base", "python", "dictionary"):
        shutil.copytree(FAMILY / name, floor.hub.store.root / "team" / f"real-{name}")
    return floor


def recipe(scale: float, **changes: Any) -> dict[str, Any]:
    return {
        "base": "team/real-base",
        "sources": ["team/real-python", "team/real-dictionary"],
        "steps": [{"method": "task_arithmetic", "scale": scale}],
        **changes,
    }


def check_of(floor: Floor, job_id: str) -> dict[str, Any]:
    with floor.sessions() as session:
        return next(row.detail for row, _ in evaluations.of_job(session, job_id) if row.name == "check")


def test_a_sound_merge_passes_beside_its_parents_which_are_measured_once(trained: Floor) -> None:
    job = trained.run(trained.order(recipe(0.5), output={"repo": REPO}))
    assert job.state == "succeeded" and job.result is not None and job.result["checked"] is True
    check = check_of(trained, job.id)
    assert check["ok"] and set(check["parents"]) == {"base", "m0", "m1"}
    worst = max(each["bits_per_byte"] for each in check["parents"].values())
    assert check["vitals"]["bits_per_byte"] < 1.02 * worst and 0.2 < check["vitals"]["entropy"] < 0.8
    again = trained.run(trained.order(recipe(0.4), output={"repo": f"{REPO}-again"}))
    assert check_of(trained, again.id)["parents"] == check["parents"]


def test_a_merge_far_too_strong_is_not_published(trained: Floor) -> None:
    job = trained.run(trained.order(recipe(50.0), output={"repo": REPO}))
    assert (job.state, job.error_code) == ("failed", "check_failed")
    assert "worse than its worst parent" in (job.error_detail or "")
    assert trained.hub.stats.requests["commit"] == 0
    codes = {finding["code"] for finding in check_of(trained, job.id)["findings"]}
    assert {"loss_much_worse"} <= codes
    asked = {"output": {"repo": REPO, "publish": "always"}}
    job = trained.run(trained.order(recipe(50.0), **asked))
    assert job.state == "succeeded" and job.result is not None and job.result["checked"] is False


def test_layers_in_a_wrong_order_are_found_although_every_file_is_fine(trained: Floor) -> None:
    layers = [{"sources": [{"id": "a", "layers": [place, place + 1]}]} for place in reversed(range(4))]
    sources = [{"id": "a", "model": "team/real-python"}]
    shuffled = {"sources": sources, "steps": ["passthrough"], "slices": layers}
    job = trained.run(trained.order(shuffled, output={"repo": REPO}))
    assert (job.state, job.error_code) == ("failed", "check_failed"), job.error_detail
    allowed = {"sets": [], "loss_margin": 9.0}
    job = trained.run(trained.order(shuffled, output={"repo": REPO}, evaluate=allowed))
    assert job.state == "succeeded", job.error_detail


def test_a_result_that_is_held_against_no_parent_says_so(floor: Floor) -> None:
    for number, name in enumerate(("seen", "seen-too")):
        tiny.vit(floor.hub.store.root / "team" / name, expert=number)
    sources = ["team/seen", "team/seen-too"]
    job = floor.run(floor.order({"sources": sources, "steps": ["linear"]}, output={"repo": REPO}))
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    (told,) = check_of(floor, job.id)["findings"]
    assert (told["severity"], told["code"]) == ("warning", "not_compared")


def test_parents_that_cannot_be_measured_are_told_too(
    trained: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "_vitals", lambda *_, **__: None)
    job = trained.run(trained.order(recipe(0.5), output={"repo": REPO}))
    check = check_of(trained, job.id)
    assert check["vitals"] and not check["parents"]
    assert [(each["code"], "fits into memory" in each["message"]) for each in check["findings"]] == [
        ("not_compared", True)
    ]
