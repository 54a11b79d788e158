"""What is merged for an adapter or a bundle is looked at while it is there, and merged once."""

import json
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.bundle.masks import Masks
from merge.planning.forms.bundle import Kept
from merge.planning.outputs import OutputTensor
from merge.running.survey.watch import Watch
from merge.work import Work
from tests import tiny
from tests.merge.results.adapters import made

PIECES = ((0, 4), (10, 4), (20, 3))


@pytest.mark.parametrize("step", [1, 3, 4, 7, 11, 23])
def test_every_piece_is_seen_once_and_whole_wherever_blocks_begin(step: int) -> None:
    found: dict[int, list[float]] = {}
    watch = Watch(PIECES, lambda first, part: found.update({first: part.tolist()}), dict)
    values = torch.arange(23.0)
    for _ in range(2):
        for first in range(0, 23, step):
            watch.saw(first, values[first : first + step])
        values = torch.zeros(23)  # what is shown again is not looked at
    assert found == {0: [0, 1, 2, 3], 10: [10, 11, 12, 13], 20: [20, 21, 22]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(("base", "a", "b")):
        tiny.llama(folder / name, expert=number, dtype=torch.float32)
    return folder


@pytest.mark.parametrize(
    "result",
    [
        {"form": "bundle", "kind": "tall"},
        {"form": "bundle", "kind": "emr"},
        {"form": "adapter", "rank": 2, "classes": {"norm": "save", "embed": "drop"}},
    ],
    ids=["tall", "emr", "adapter"],
)
@pytest.mark.parametrize("steps", [["task_arithmetic"], ["ties"]], ids=str)
def test_a_report_merges_nothing_a_second_time(
    root: Path, tmp_path: Path, result: dict[str, Any], steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    merged: Callable[[Work, OutputTensor, int, int], Tensor] = Work.merged
    asked: list[int] = []

    def counting(work: Work, output: OutputTensor, first: int, count: int) -> Tensor:
        asked.append(count if prod(output.shape) > 16 else 0)
        return merged(work, output, first, count)

    monkeypatch.setattr(Work, "merged", counting)
    sources = [{"id": "a", "model": "a"}, {"id": "b", "model": "b"}]
    document = {"base": "base", "sources": sources, "steps": steps, "result": result}
    totals = {}
    for survey in ("full", "none"):
        asked.clear()
        made(root, document, str(tmp_path / survey), survey=survey)
        totals[survey] = sum(asked)
    assert (tmp_path / "full/merge_report.json").exists()
    assert totals["full"] == totals["none"] > 0


@pytest.mark.parametrize("kind", ["tall", "emr"])
def test_a_bundle_made_in_small_spans_has_the_same_report(
    root: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [{"id": "a", "model": "a"}, {"id": "b", "model": "b"}]
    result = {"form": "bundle", "kind": kind}
    document = {"base": "base", "sources": sources, "steps": ["task_arithmetic"], "result": result}

    def small(_: Masks, each: Kept, __: int) -> Iterator[tuple[int, int]]:
        total = prod(each.output.shape)
        yield from ((first, min(64, total - first)) for first in range(0, total, 64))

    made(root, document, str(tmp_path / "large"), survey="full")
    monkeypatch.setattr(Masks, "_spans", small)
    made(root, document, str(tmp_path / "small"), survey="full")
    large, cut = (
        json.loads((tmp_path / name / "merge_report.json").read_text()) for name in ("large", "small")
    )
    assert cut == large
