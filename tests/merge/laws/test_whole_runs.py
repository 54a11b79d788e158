"""Laws of the engine with every method: whole runs over the awkward tensors of ``odd.py``."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.contract.method import Kind, Method
from merge.errors import NotFinite, Stopped
from merge.plan import Plan
from merge.run import run
from tests.merge import informed
from tests.merge.every import METHODS, brief, count_of, moved
from tests.merge.laws import odd
from tests.merge.references import tensors_digest

EVERY = pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
BAD = (float("nan"), float("-inf"))
SETTINGS: Mapping[str, Callable[[Method], dict[str, Any]]] = {
    "defaults": brief,
    "moved": lambda method: moved(method) | brief(method),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return odd.family(tmp_path_factory.mktemp("odd"), 8)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, float], Path]:
    """The first source with one bad number, by the tensor that has it at its end and by the number."""
    made = {}
    for name in ("scalar.weight", "tall.weight"):
        for value in BAD:
            tensor = odd.tensor("a", name).clone()
            tensor.view(-1)[-1] = value
            folder = tmp_path_factory.mktemp("broken")
            made[name, value] = odd.write(folder, "a", **{name.split(".")[0]: tensor})
    return made


def known(plan: Plan, folders: Mapping[str, Path]) -> dict[str, Path]:
    return informed.folders_for(plan, folders["base"].parent)


@EVERY
@pytest.mark.parametrize("settings", SETTINGS)
def test_threads_blocks_and_files_do_not_change_a_bit(
    folders: Mapping[str, Path], tmp_path: Path, method: Method, settings: str
) -> None:
    digests = set()
    for threads, budget, shard in ((1, odd.SMALL, 64 << 10), (2, odd.SMALL, 400_000), (4, odd.GIB, odd.GIB)):
        plan, out = (
            odd.planned(folders, method, SETTINGS[settings](method), shard_bytes=shard),
            tmp_path / str(threads),
        )
        run(plan, folders, out, budget_bytes=budget, threads=threads, statistics=known(plan, folders))
        digests.add(tensors_digest(out))
    assert len(digests) == 1


@EVERY
def test_one_source_and_eight_work_where_the_method_takes_them(
    folders: Mapping[str, Path], tmp_path: Path, method: Method
) -> None:
    least, most = method.needs.sources
    for count in sorted({max(1, least), min(8, most or 8)}):
        plan = odd.planned(folders, method, brief(method), count)
        report = run(
            plan,
            folders,
            tmp_path / str(count),
            budget_bytes=odd.GIB,
            threads=1,
            statistics=known(plan, folders),
        )
        assert report.tensors == len(odd.SHAPES)


@EVERY
def test_stopped_anywhere_and_resumed_gives_the_same_bytes(
    folders: Mapping[str, Path], tmp_path: Path, method: Method
) -> None:
    plan = odd.planned(folders, method, brief(method), shard_bytes=64 << 10)
    statistics = known(plan, folders)
    run(plan, folders, tmp_path / "straight", budget_bytes=odd.SMALL, threads=1, statistics=statistics)
    out = tmp_path / "halting"
    for step in itertools.count(1):
        calls = itertools.count()
        limit = step * 6
        try:
            run(
                plan,
                folders,
                out,
                budget_bytes=odd.SMALL,
                threads=1,
                statistics=statistics,
                should_stop=lambda c=calls, n=limit: next(c) >= n,
            )
            break
        except Stopped:
            assert not out.exists()
    assert step > 1, "it was stopped at least once"
    assert tensors_digest(out) == tensors_digest(tmp_path / "straight")


@EVERY
@pytest.mark.parametrize("value", BAD)
def test_a_bad_number_stops_with_the_name_of_the_tensor(
    folders: Mapping[str, Path],
    broken: Mapping[tuple[str, float], Path],
    tmp_path: Path,
    method: Method,
    value: float,
) -> None:
    for name in ("scalar.weight", "tall.weight"):
        models = {**folders, "a": broken[name, value]}
        plan = odd.planned(models, method, brief(method))
        if not any(source.model == "a" for o in plan.outputs if o.name == name for source in o.inputs):
            continue
        with pytest.raises(NotFinite, match=rf"^{name} of a "):
            run(
                plan,
                models,
                tmp_path / "out",
                budget_bytes=odd.GIB,
                threads=1,
                statistics=known(plan, folders),
            )


def test_every_kind_of_method_is_walked() -> None:
    assert {method.kind for method in METHODS} >= {Kind.PREPARE, Kind.COMBINE}
    assert all(count_of(method) >= 1 for method in METHODS)
    assert {odd.tensor("a", name).dtype for name in odd.SHAPES} == {
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    }
