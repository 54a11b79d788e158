"""Merging into memory gives, bit for bit, what a run writes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge import in_memory
from merge.checkpoint.index import index_folder
from merge.checkpoint.reader import TensorReader
from merge.contract.method import registered
from merge.errors import BudgetTooSmall, NotInMemory, Stopped
from merge.in_memory import InMemory
from merge.kernels.keyed import Draws
from merge.kernels.thin import untangled
from merge.methods import load as load_methods
from merge.methods.spectral import tsv_m
from merge.plan import Plan, make_plan
from merge.recipe.recipe import Recipe
from merge.run import fitted_sizes, run
from merge.running import chain
from merge.running.kept import Kept
from tests import tiny
from tests.merge import informed

BUDGET = 256 << 20
STEPS: list[list[Any]] = [
    ["linear"],
    ["passthrough"],
    ["slerp"],
    ["dare", {"method": "ties", "density": 0.4}],
    [{"method": "ties", "scope": "global", "density": 0.3}],
    ["task_arithmetic", "norm_repair"],
    ["model_stock"],
    ["tsv_m"],
    ["iso_c"],
]


def planned(recipe: Mapping[str, Any], folders: Mapping[str, Path]) -> Plan:
    return make_plan(
        Recipe.model_validate(recipe), {k: index_folder(f) for k, f in folders.items()}, budget=BUDGET
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tiny.family(tmp_path_factory.mktemp("family"), 2)
    return dict(zip(("base", "m0", "m1"), made, strict=True))


@pytest.mark.parametrize("steps", STEPS, ids=lambda steps: "-".join(str(step) for step in steps)[:40])
def test_the_same_bytes_as_a_run_writes(steps: list[Any], folders: dict[str, Path], tmp_path: Path) -> None:
    single = steps == ["passthrough"]
    sources = ["o/a"] if single else ["o/a", "o/b"]
    plan = planned({"base": "o/base", "sources": sources, "steps": steps}, folders)
    used = {key: folder for key, folder in folders.items() if key in plan.models}
    run(plan, used, tmp_path / "out", budget_bytes=BUDGET, threads=2)
    written = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        written |= load_file(path)
    with InMemory(used, budget_bytes=BUDGET) as memory:
        for _ in range(2):
            made = dict(memory.tensors(plan))
            assert made.keys() == written.keys()
            for name, tensor in written.items():
                assert made[name].dtype == tensor.dtype and torch.equal(made[name], tensor), name


def test_recipes_follow_one_another_over_open_files(folders: dict[str, Path]) -> None:
    base = {"base": "o/base", "sources": ["o/a", "o/b"]}
    with InMemory(folders, budget_bytes=BUDGET) as memory:
        first = dict(
            memory.tensors(planned({**base, "steps": [{"method": "task_arithmetic", "scale": 0.0}]}, folders))
        )
        second = dict(memory.tensors(planned({**base, "steps": ["task_arithmetic"]}, folders)))
    held = load_file(next(folders["base"].glob("*.safetensors")))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[name], held[name]) and not torch.equal(second[name], held[name])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"result": {"form": "adapter", "rank": 2}}, "is an adapter"),
        (
            {"stages": {"s": {"sources": ["o/a", "o/b"], "steps": ["linear"]}}, "sources": ["stage:s"]},
            "has stages",
        ),
    ],
)
def test_what_must_be_written_says_so(more: dict[str, Any], said: str, folders: dict[str, Path]) -> None:
    recipe = {"base": "o/base", "sources": ["o/a", "o/b"], "steps": ["task_arithmetic"], **more}
    models = {key: index_folder(folder) for key, folder in folders.items()}
    models |= {"s.m0": models["m0"], "s.m1": models["m1"]}
    plan = make_plan(Recipe.model_validate(recipe), models, budget=BUDGET)
    with InMemory(folders, budget_bytes=BUDGET) as memory, pytest.raises(NotInMemory, match=said):
        next(memory.tensors(plan))


def test_freed_memory_is_given_back_at_the_end_and_not_after_every_merge(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = list[str]()

    @contextmanager
    def kept_memory() -> Iterator[None]:
        noted.append("kept")
        yield
        noted.append("given back")

    monkeypatch.setattr(in_memory, "kept_memory", kept_memory)
    plan = planned({"base": "o/base", "sources": ["o/a", "o/b"], "steps": ["ties"]}, folders)
    with InMemory(folders, budget_bytes=BUDGET) as memory:
        for _ in range(2):
            dict(memory.tensors(plan))
        assert noted == ["kept"]
    assert noted == ["kept", "given back"]


def test_it_stops_when_told(folders: dict[str, Path]) -> None:
    plan = planned({"base": "o/base", "sources": ["o/a", "o/b"], "steps": ["ties"]}, folders)
    with InMemory(folders, budget_bytes=BUDGET, should_stop=lambda: True) as memory, pytest.raises(Stopped):
        list(memory.tensors(plan))


def test_small_models_are_read_once_and_given_up_where_memory_is_short(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned({"base": "o/base", "sources": ["o/a", "o/b"], "steps": ["ties"]}, folders)
    real, read = TensorReader.read_float, list[str]()

    def noted(self: TensorReader, name: str, first: int, count: int, out: torch.Tensor) -> None:
        read.append(name)
        real(self, name, first, count, out)

    monkeypatch.setattr(TensorReader, "read_float", noted)
    with InMemory(folders, budget_bytes=BUDGET) as memory:
        first = dict(memory.tensors(plan))
        assert len(read) == 3 * len(first) == len(set(read)) * 3
        assert all(torch.equal(made, first[name]) for name, made in memory.tensors(plan))
        assert len(read) == 3 * len(first)
        tight = fitted_sizes(plan, BUDGET, 1, 0)
        monkeypatch.setattr(
            in_memory, "fitted_sizes", lambda *asked: tight if asked[-1] == 0 else refused(asked[-1])
        )
        assert all(torch.equal(made, first[name]) for name, made in memory.tensors(plan))
        assert len(read) > 3 * len(first)


def refused(lent: int) -> Any:
    raise BudgetTooSmall(f"{lent} bytes are kept")


load_methods()
SCALED = sorted(name for name, method in registered().items() if method.scaled)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("before", [[], ["dare"]], ids=["plain", "dare"])
def test_a_change_that_was_kept_gives_the_bytes_of_one_made_anew(
    name: str, before: list[str], folders: dict[str, Path]
) -> None:
    def plan(scale: float, weight: float) -> Plan:
        sources = [{"id": "m0", "model": "o/a", "weight": weight}, {"id": "m1", "model": "o/b"}]
        steps = [*before, {"method": name, "scale": scale}]
        return planned({"base": "o/base", "sources": sources, "steps": steps}, folders)

    asked = [(0.3, 1.0), (-1.7, 1.0), (0.9, 0.5), (0.0, 0.5), (0.3, 1.0)]
    asked += [(0.9, 0.7), (0.9, -0.4), (0.9, 0.0), (0.9, 0.7)]
    with InMemory(folders, budget_bytes=BUDGET) as memory:
        recalled = [dict(memory.tensors(plan(*each))) for each in asked]
    for found, each in zip(recalled, asked, strict=True):
        with InMemory(folders, budget_bytes=BUDGET) as memory:
            for tensor, made in memory.tensors(plan(*each)):
                assert torch.equal(made.view(torch.int16), found[tensor].view(torch.int16)), (tensor, each)


def test_a_change_that_depends_on_data_is_not_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = {"base": "o/base", "sources": ["o/a", "o/b"], "steps": ["activation_trim", "ties"]}
    plan = planned(recipe, folders)
    known = informed.folders_for(plan, tmp_path)
    turned = {**known, "m0": known["m1"], "m1": known["m0"]}
    with InMemory(folders, budget_bytes=BUDGET) as memory:
        dict(memory.tensors(plan, known))
        after = dict(memory.tensors(plan, turned))
    with InMemory(folders, budget_bytes=BUDGET) as memory:
        assert all(torch.equal(made, after[name]) for name, made in memory.tensors(plan, turned))


def test_what_a_scale_does_not_change_is_worked_out_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    worked, drawn = list[int](), list[int]()
    real_draw = Draws.bits

    def decomposed(*asked: Any, **named: Any) -> Any:
        worked.append(1)
        return untangled(*asked, **named)

    def noted(self: Draws, stream: int = 0) -> torch.Tensor:
        drawn.append(stream)
        return real_draw(self, stream)

    monkeypatch.setattr(tsv_m, "untangled", decomposed)
    monkeypatch.setattr(Draws, "bits", noted)
    with InMemory(folders, budget_bytes=BUDGET) as memory:

        def count(density: float, weight: float = 1.0, **settings: Any) -> tuple[int, int]:
            worked.clear()
            drawn.clear()
            steps = [{"method": "dare", "density": density}, {"method": "tsv_m", **settings}]
            sources = ["o/a", {"id": "m1", "model": "o/b", "weight": weight}]
            dict(memory.tensors(planned({"base": "o/base", "sources": sources, "steps": steps}, folders)))
            return len(worked), len(drawn)

        decompositions, draws = count(0.5)
        assert decompositions > 0 and draws > 0
        assert count(0.5, scale=0.4) == (0, 0)
        assert count(0.5, scale=0.4, rank_share=0.25) == (decompositions, 0)
        assert count(0.7, scale=0.4) == (decompositions, 0)
        assert count(0.7, 0.3) == (0, 0) == count(0.7, -0.6, scale=0.4)
        assert count(0.7, 0.0) == (decompositions, 0), "a source without weight brings no directions"
        assert count(0.5, 0.3) == (decompositions, 0)


def test_singular_vectors_are_kept_once_a_change_was_of_no_more_use(folders: dict[str, Path]) -> None:
    def plan(scale: float, weight: float) -> Plan:
        sources = ["o/a", {"id": "m1", "model": "o/b", "weight": weight}]
        return planned(
            {"base": "o/base", "sources": sources, "steps": [{"method": "tsv_m", "scale": scale}]}, folders
        )

    with InMemory(folders, budget_bytes=BUDGET) as memory:
        bytes_kept = list[int]()
        for scale, weight in ((1.0, 1.0), (0.5, 1.0), (0.5, 0.7), (0.5, 0.3)):
            dict(memory.tensors(plan(scale, weight)))
            bytes_kept.append(memory._kept._bytes)
        assert bytes_kept[0] == bytes_kept[1] < bytes_kept[2] == bytes_kept[3] <= memory._kept.most_bytes


def test_a_kept_change_is_cut_where_blocks_get_smaller(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(scale: float) -> Plan:
        steps = [{"method": "ties", "scale": scale}]
        return planned({"base": "o/base", "sources": ["o/a", "o/b"], "steps": steps}, folders)

    with InMemory(folders, budget_bytes=BUDGET) as memory:
        dict(memory.tensors(plan(1.0)))
        monkeypatch.setattr(chain, "PIECE_ELEMENTS", 64)
        small = replace(fitted_sizes(plan(1.0), BUDGET, 1, 0), block=64)
        monkeypatch.setattr(in_memory, "fitted_sizes", lambda *_: small)
        parts = dict(memory.tensors(plan(0.5)))
    monkeypatch.undo()
    with InMemory(folders, budget_bytes=BUDGET) as memory:
        assert all(torch.equal(made, parts[name]) for name, made in memory.tensors(plan(0.5)))


def test_what_is_kept_stays_within_its_bound(folders: dict[str, Path]) -> None:
    plan = planned({"base": "o/base", "sources": ["o/a", "o/b"], "steps": ["dare", "ties"]}, folders)
    kept = Kept(1000)
    first, second = torch.zeros(200), torch.ones(100)
    assert kept.recall("a", 1, lambda: first) is first and kept.recall("a", 1, lambda: second) is first
    assert kept.recall("b", 1, lambda: second) is second and not kept.knows("b", 1)
    assert kept.recall("a", 2, lambda: second) is second and kept.knows("a", 2)
    with InMemory(folders, budget_bytes=64 << 20) as memory:
        before = dict(memory.tensors(plan))
        assert all(torch.equal(made, before[name]) for name, made in memory.tensors(plan))
