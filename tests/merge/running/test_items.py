"""Small tensors are merged some at a time by one thread; large ones side by side."""

import threading
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from merge.local import index_models, model_folders
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from merge.running.chain import Block, Chain
from merge.running.items import HANDFUL, Item, in_handfuls
from merge.running.passes import AT_ONCE
from tests import tiny

RECIPE = {"base": "base", "sources": [{"id": "a", "model": "expert1"}], "steps": [{"method": "ties"}]}


def item(count: int) -> Item:
    output: Any = None
    return Item(output, None, None, 0, count, last=True)


def test_small_items_go_together_and_large_ones_alone_in_their_order() -> None:
    counts = [*[5] * (HANDFUL + 2), AT_ONCE + 1, AT_ONCE + 2, 7, AT_ONCE]
    found = [[each.count for each in some] for some in in_handfuls(iter(map(item, counts)))]
    assert found == [[5] * HANDFUL, [5] * 2, [AT_ONCE + 1], [AT_ONCE + 2], [7, AT_ONCE]]


def test_threads_do_not_merge_small_tensors_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.family(tmp_path, experts=1, layers=20, hidden=16)
    recipe = recipe_from(RECIPE)
    plan = make_plan(recipe, index_models(recipe, tmp_path), budget=1 << 30)
    assert len(plan.outputs) > 4 * HANDFUL
    inside, most, seen = 0, 0, set()
    compute = Chain.compute

    def counted(chain: Chain, block: Block) -> Tensor:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        seen.add(threading.get_ident())
        made = compute(chain, block)
        inside -= 1
        return made

    monkeypatch.setattr(Chain, "compute", counted)
    run(plan, model_folders(recipe, tmp_path), tmp_path / "out", budget_bytes=1 << 30, threads=4)
    assert most == 1 and seen
