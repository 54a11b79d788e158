"""Small tensors are merged some at a time by one thread; large ones side by side."""

import threading
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge.local import index_models, model_folders
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from merge.running.chain import Block, Chain
from merge.running.items import HANDFUL, Item, in_handfuls, in_shares
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


def shares(files: list[list[int]], most_bytes: int, most_large: int) -> list[list[tuple[int, int]]]:
    """The batches of tensors of so many entries of a byte: file and place in it of each."""
    outputs: list[list[Any]] = [
        [SimpleNamespace(at=(file, place), shape=(size,)) for place, size in enumerate(own)]
        for file, own in enumerate(files)
    ]
    found = in_shares(outputs, lambda output: prod(output.shape), most_bytes, most_large)
    return [[output.at for output in batch] for batch in found]  # type: ignore[attr-defined]


def test_a_batch_takes_from_every_file_what_is_left_of_it_beside_the_others() -> None:
    large, rest = 1000, [100] * 10
    batches = shares([[large, *rest], [100] * 20], 400, 99)
    assert batches[0] == [(0, 0), (1, 0), (1, 1)]  # 200 of each, or what goes over
    assert all({file for file, _ in batch} == {0, 1} for batch in batches)
    assert [len(batch) for batch in batches[1:-1]] == [5, 5, 5, 5, 4]


@given(
    st.lists(st.lists(st.sampled_from([0, 1, 50, AT_ONCE + 1]), max_size=12), max_size=4),
    st.sampled_from([1, 100, 3 * AT_ONCE]),
    st.integers(1, 4),
)
def test_every_tensor_is_in_one_batch_in_its_file_s_order(
    files: list[list[int]], most_bytes: int, most_large: int
) -> None:
    batches = shares(files, most_bytes, most_large)
    assert all(batches)
    for file, own in enumerate(files):
        assert [place for batch in batches for at, place in batch if at == file] == list(range(len(own)))
    for batch in batches:
        sizes = [files[file][place] for file, place in batch]
        assert sum(size > AT_ONCE for size in sizes) <= most_large
        assert sum(sizes) <= most_bytes + len(files) * (AT_ONCE + 2)


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
