"""The report of a result that is an adapter: the numbers of the merge it was made from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.errors import Stopped
from merge.results.adapter import product_entries
from tests import tiny
from tests.merge.results.adapters import changes, made

MODULES = {"model.layers.0.self_attn.q_proj": (16, 16), "model.layers.1.mlp.down_proj": (16, 32)}
DARE_TIES = [{"method": "dare", "density": 0.5}, {"method": "ties", "density": 0.6}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(("base", "a", "b")):
        tiny.llama(folder / name, expert=number, dtype=torch.float32)
    tiny.lora(folder / "one", MODULES, seed=1, r=4)
    tiny.lora(folder / "two", dict(list(MODULES.items())[:1]), seed=2, r=2)
    return folder


def report(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "merge_report.json").read_text())
    return told


def merging(steps: list[Any], **more: Any) -> dict[str, Any]:
    sources = [{"id": "a", "model": "a"}, {"id": "b", "model": "b", "weight": 0.5}]
    return {"base": "base", "sources": sources, "steps": steps, "dtype": {"output": "float32"}, **more}


@pytest.mark.parametrize("steps", [["task_arithmetic"], DARE_TIES, ["tsv_m"]], ids=str)
def test_an_extracted_adapter_has_the_numbers_of_the_merge(
    root: Path, tmp_path: Path, steps: list[Any]
) -> None:
    made(root, merging(steps), str(tmp_path / "dense"))
    classes = {"norm": "save", "embed": "drop"}
    asked = merging(steps, result={"form": "adapter", "rank": 2, "classes": classes})
    made(root, asked, str(tmp_path / "adapter"))
    (wanted,), (found,) = (report(tmp_path / name)["groups"] for name in ("dense", "adapter"))
    assert found["all"]["tensors"] == wanted["all"]["tensors"]
    assert report(tmp_path / "adapter")["task_vectors_from"] == "base"
    for whole, part in ((wanted["all"], found["all"]), *zip(wanted["layers"], found["layers"], strict=True)):
        close(whole, part)


def close(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    assert found["norms"] == pytest.approx(wanted["norms"], rel=1e-4)
    for name in ("merged_norm", "sign_conflict", "changed"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), name
    for name in ("kept", "followed", "prepared"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-3), name
    assert found["cosine"][0][1] == pytest.approx(wanted["cosine"][0][1], abs=1e-4)


def test_an_extraction_of_one_model_is_held_against_the_base(root: Path, tmp_path: Path) -> None:
    result = {"form": "adapter", "rank": 64}
    document = {"base": "base", "sources": [{"id": "a", "model": "a"}], "steps": ["passthrough"]}
    made(root, document | {"result": result}, str(tmp_path / "out"))
    (group,) = report(tmp_path / "out")["groups"]
    assert group["all"]["norms"]["a"] == pytest.approx(group["all"]["merged_norm"]) != 0
    assert group["all"]["followed"] == {"a": 1.0}


@pytest.mark.parametrize("step", ["task_arithmetic", "cat_svd"])
def test_merged_factors_are_told_by_their_products(root: Path, tmp_path: Path, step: str) -> None:
    sources = [{"id": "one", "adapter": "one"}, {"id": "two", "adapter": "two", "weight": -0.5}]
    document = {"base": "base", "sources": sources, "steps": [step]}
    made(root, document | {"result": {"form": "adapter", "error": 0.0}}, str(tmp_path / "out"))
    (group,) = report(tmp_path / "out")["groups"]
    first, second = (changes(root / name) for name in ("one", "two"))
    q, down = (f"{name}.weight" for name in MODULES)
    norms = {"one": (first[q].norm() ** 2 + first[down].norm() ** 2) ** 0.5, "two": second[q].norm()}
    assert group["all"]["norms"] == pytest.approx({name: float(n) for name, n in norms.items()}, rel=1e-4)
    merged = [first[q] - 0.5 * second[q], first[down]]
    assert group["all"]["merged_norm"] == pytest.approx(
        sum(float(each.square().sum()) for each in merged) ** 0.5, rel=1e-4
    )
    conflict = int((first[q] * second[q] < 0).sum()) / (256 + 512)
    assert group["all"]["sign_conflict"] == pytest.approx(conflict, abs=1e-6)


def test_nothing_depends_on_threads_memory_or_interruptions(root: Path, tmp_path: Path) -> None:
    document = merging(DARE_TIES, result={"form": "adapter", "rank": 2})
    made(root, document, str(tmp_path / "one"))
    made(root, document, str(tmp_path / "two"), threads=2, budget_bytes=1 << 30)
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        made(root, document, str(tmp_path / "three"), should_stop=lambda: next(asked) > 25)
    made(root, document, str(tmp_path / "three"))
    assert report(tmp_path / "one") == report(tmp_path / "two") == report(tmp_path / "three")


def test_none_asked_for_is_none_made(root: Path, tmp_path: Path) -> None:
    document = merging(["task_arithmetic"], result={"form": "adapter", "rank": 2})
    made(root, document, str(tmp_path / "out"), survey="none")
    assert not list((tmp_path / "out").glob("merge_report*"))


def test_entries_of_a_product_are_found_wherever_they_lie() -> None:
    left, right = torch.randn(30, 4).double(), torch.randn(4, 70).double()
    whole = (left @ right).view(-1)
    for first, count in ((0, 2100), (5, 60), (69, 2), (140, 700), (2099, 1)):
        assert torch.allclose(
            product_entries(left, right, first, count).double(), whole[first : first + count], atol=1e-5
        )
