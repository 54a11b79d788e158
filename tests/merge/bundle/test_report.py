"""The report of a bundle: the numbers of the merge that its members are read from."""

import json
from typing import Any

import pytest

from tests.merge.bundle.conftest import Shop
from tests.merge.bundle.test_factors import adapters, recipe


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


@pytest.mark.parametrize("components", [1, 2])
def test_the_report_of_factors_tells_of_the_changes_they_make(shop: Shop, components: int) -> None:
    given = adapters(shop)
    shop.make(recipe(components), "bundle")
    shop.make(recipe(components), "again", threads=2)
    found = told(shop, "bundle")
    (group,) = found["groups"]
    for place, factors in enumerate(given):
        norm = sum(float((b @ a).square().sum()) for b, a in factors.values()) ** 0.5
        assert group["all"]["norms"][f"a{place}"] == pytest.approx(norm, rel=1e-4)
    base, names = shop.weights("base"), list(given[0])
    members = [shop.member("bundle", f"a{place}", "--dtype", "float64") for place in range(len(given))]
    means = [
        sum(each[f"{name}.weight"] for each in members) / len(given) - base[f"{name}.weight"]
        for name in names
    ]
    length = sum(float(mean.square().sum()) for mean in means) ** 0.5
    assert group["all"]["merged_norm"] == pytest.approx(length, rel=1e-3)
    assert told(shop, "again") == found
