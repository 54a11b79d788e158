"""The report of a bundle: the numbers of the merge that its members are read from."""

import json
from typing import Any

import pytest

from tests.merge.bundle.conftest import Shop


def told(shop: Shop, out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shop.root / out / "merge_report.json").read_text())
    return found


@pytest.mark.parametrize("step", ["task_arithmetic", "ties", "tsv_m"])
def test_a_bundle_tells_what_its_merge_would(shop: Shop, step: str) -> None:
    bundle = shop.recipe("tall", steps=(step,))
    shop.make(bundle, "bundle")
    shop.make({key: bundle[key] for key in ("base", "sources", "steps")}, "plain")
    shop.make(bundle, "again", threads=2, budget_bytes=200 << 20)
    (found,), (wanted,) = told(shop, "bundle")["groups"], told(shop, "plain")["groups"]
    for name in ("norms", "merged_norm", "sign_conflict", "changed", "followed"):
        assert found["all"][name] == pytest.approx(wanted["all"][name], rel=1e-4, abs=1e-6), name
    assert told(shop, "bundle")["task_vectors_from"] == "base"
    assert told(shop, "again") == told(shop, "bundle")
    assert (shop.root / "bundle" / "merge_report.html").exists()


def test_a_mean_is_held_against_the_base_too(shop: Shop) -> None:
    shop.make(shop.recipe("emr", steps=("linear",)), "bundle")
    (group,) = told(shop, "bundle")["groups"]
    assert 0 < group["all"]["merged_norm"] < max(group["all"]["norms"].values())
