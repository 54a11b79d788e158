"""Small tensors need no pass of their own, and get the same statistics as by counting."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.contract.groups import Site
from merge.contract.stats import Counts, Part, Stat, Term
from merge.running import passes
from merge.running.chain import Block, Chain
from merge.running.crew import Crew
from merge.running.fused.windows import Windows
from merge.running.tasks import Task
from tests.merge.every import METHODS, steps_of
from tests.merge.whole import Steps, bound, merge_one


class Read:
    """Three sources near a base, and how often they were read."""

    def __init__(self, entries: int) -> None:
        generator = torch.Generator().manual_seed(entries)
        self.base = torch.randn(entries, generator=generator)
        self.sources = [self.base + torch.randn(entries, generator=generator) for _ in range(3)]
        self.times = 0

    def __call__(self, _: Chain, first: int, count: int) -> Block:
        self.times += 1
        span = slice(first, first + count)
        return Block(first, (count,), self.base[span], [source[span] for source in self.sources])


def chain_for(name: str, values: dict[str, Any], entries: int) -> Chain:
    method = next(method for method in METHODS if method.name == name)
    steps = steps_of(method, values)
    return Chain(Site("w", "linear", (entries,), ("a", "b", "c")), bound(steps, 3), (1.0,) * 3, 0)


def merged(chain: Chain, read: Read) -> Tensor:
    return chain.compute(read(chain, 0, chain.entries))


@pytest.mark.parametrize("name", ["ties", "trim"])
def test_small_tensors_are_settled_from_the_block_that_is_merged(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, values = Read(1000), {"density": 0.3}
    small = chain_for(name, values, 1000)
    assert passes.alone(small)
    assert passes.count(small) == 0
    passes.settle(small, read(small, 0, 1000))
    monkeypatch.setattr(passes, "AT_ONCE", 10)
    counted = chain_for(name, values, 1000)
    assert passes.count(counted) == 2
    for level in (1, 2):
        for task in (task for task in counted.tasks if task.due(level)):
            task.part = task.stat.part()
            task.part.add(0, counted.measure(read(counted, 0, 1000), [task])[0])
            task.so_far = task.stat.close(task.part, task.params, 1000, task.so_far)
            task.rounds_done += 1
    assert [task.value for task in small.tasks] == [task.value for task in counted.tasks]
    assert torch.equal(merged(small, read), merged(counted, read))


@pytest.mark.parametrize(
    ("name", "values", "entries"),
    [
        ("ties", {"density": 0.3}, passes.AT_ONCE + 1),
        ("ties", {"density": 0.3, "scope": "global"}, 1000),
        ("sce", {"density": 0.1}, 1000),
        ("linear", {}, 1000),
    ],
)
def test_what_is_large_global_or_needs_sums_is_measured_as_ever(
    name: str, values: dict[str, Any], entries: int
) -> None:
    assert not passes.alone(chain_for(name, values, entries))


class Closed(Stat):
    """Adds nothing up, and says when its round is ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def terms(self, values: Sequence[Tensor], p: Any, so_far: Any) -> list[Term]:
        return []

    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:
        self.ended.set()

    def part(self) -> Part:
        return Counts()


def test_a_tensor_that_is_measured_is_ended_while_another_thread_goes_on() -> None:
    entries = passes.AT_ONCE + 1
    chains = [chain_for("trim", {"density": 0.3}, entries) for _ in range(2)]
    chains[1].site = Site("later", "linear", (entries,), ("a", "b", "c"))
    ends = []
    for chain in chains:
        ends.append(Closed())
        for task in chain.tasks:
            task.stat = ends[-1]
    read = Read(entries)

    def load(chain: Chain, first: int, count: int) -> Block:
        if chain is chains[1]:
            assert ends[0].ended.wait(10)
        return read(chain, first, count)

    with Crew(2) as crew:
        passes.measure(chains, 1, load, crew, entries)
    assert all(task.measured for chain in chains for task in chain.tasks)


class Wrong(Windows):
    """A guess that turns out wrong when all entries were looked at."""

    def span(self, otherwise: int) -> int:
        return otherwise

    def measure(self, first: int, count: int) -> bool:
        return True

    def settle(self) -> list[Any] | None:
        return None


def test_where_a_guess_was_wrong_a_tensor_is_measured_as_ever() -> None:
    entries = passes.AT_ONCE + 1
    read, chains = Read(entries), [chain_for("ties", {"density": 0.3}, entries) for _ in range(2)]

    def guessing(chain: Chain, tasks: Sequence[Task], guess: bool) -> Wrong | None:
        return Wrong(None, chain, None, tasks, (), None) if guess else None  # type: ignore[arg-type]

    with Crew(1) as crew:
        for chain, quick in zip(chains, (guessing, lambda *_: None), strict=True):
            for level in (1, 2):
                passes.measure([chain], level, read, crew, entries, quick)
    guessed, counted = ([task.value for task in chain.tasks] for chain in chains)
    assert guessed == counted and all(task.measured for task in chains[0].tasks)


@pytest.mark.parametrize("name", ["arcee_fusion", "widen"])
def test_what_was_measured_is_used_where_the_entries_are(name: str) -> None:
    """On another device than the CPU, into whose memory everything is measured; this one holds no numbers."""
    base, source = torch.rand(12, 5), torch.rand(12, 5)
    assert merge_one([(name, {})], base, [source], device="meta").device.type == "meta"


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([("ties", {"scope": "global"})], [12, 4]),
        ([("trim", {"scope": "global"}), ("linear", {})], [16, 16]),
        ([("linear", {}), ("clip_outliers", {"scope": "global"})], [16]),
    ],
    ids=["combine", "prepare", "adjust"],
)
def test_over_all_tensors_sources_are_not_taken_for_each_other(steps: Steps, wanted: list[int]) -> None:
    """Of two tensors that are merged from (a, b) and one from (b, a): how many entries go together."""
    chains = []
    for name, shape, models in (("x", (8,), "ab"), ("y", (4,), "ba"), ("z", (4,), "ab")):
        site = Site(name, "linear", shape, tuple(f"{model}:{name}" for model in models))
        chains.append(Chain(site, bound(steps, 2), (1.0, 1.0), 0, sources=tuple(models)))
    assert [held.elements for held in passes.share_global(chains).values()] == wanted
