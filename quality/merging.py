"""One merge through the engine, as ``python -m merge run`` does it, with what it took."""

import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.learn import anonymous, peak_of
from merge.gather import gather
from merge.plan import Plan, make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from quality.bench import Family
from quality.candidates import Steps

BUDGET = 6 << 30
Own = Mapping[str, Mapping[str, Any]]
"""Settings of single sources, by their ids."""
NOTHING_OWN: Own = {}


@dataclass(frozen=True)
class Cost:
    """What a merge took: seconds on the clock and of all cores, memory beyond what was held before it, and
    the seconds for statistics that were not there yet.
    """

    seconds: float
    cpu_seconds: float
    peak_mebibytes: float
    measuring_seconds: float

    def as_dict(self) -> dict[str, float]:
        """JSON form, rounded to what was measured."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def recipe_of(
    family: Family,
    steps: Steps,
    tokens: tuple[int, int],
    *,
    needs_base: bool,
    output: str | None = None,
    own: Own = NOTHING_OWN,
) -> dict[str, Any]:
    """The recipe that merges all experts of a family, some with settings of their ``own``; every model is
    measured on its own task's texts.
    """
    base = {"base": str(family.base)} if needs_base else {}
    return {
        **base,
        "sources": [
            family.source(task) | ({"settings": dict(own[task])} if task in own else {})
            for task in family.experts
        ],
        "steps": [dict(step) for step in steps],
        "dtype": {"output": output},
        "calibration": {
            "documents": tokens[0],
            "tokens": tokens[1],
            "by_source": {
                name: {"path": str(file)}
                for name, file in family.texts.items()
                if name in base or name in family.experts
            },
        },
    }


def planned(
    family: Family,
    steps: Steps,
    tokens: tuple[int, int],
    *,
    needs_base: bool = True,
    output: str | None = None,
    own: Own = NOTHING_OWN,
) -> tuple[Plan, Mapping[str, Path]]:
    """The plan of a merge, and the folder of every model it reads."""
    recipe = recipe_from(recipe_of(family, steps, tokens, needs_base=needs_base, output=output, own=own))
    return make_plan(recipe, family.indices(base=needs_base), budget=BUDGET), family.read(base=needs_base)


def statistics_of(plan: Plan, folders: Mapping[str, Path], work: Path) -> Mapping[str, Path]:
    """What the plan needs measured, kept in ``work`` and found there again."""
    return gather(plan, folders, work, work) if plan.statistics.folders else {}


@contextmanager
def merged(
    family: Family,
    steps: Steps,
    tokens: tuple[int, int],
    work: Path,
    *,
    needs_base: bool = True,
    output: str | None = None,
    own: Own = NOTHING_OWN,
) -> Iterator[tuple[Path, Cost]]:
    """The folder of a merge while the context lasts, written in the dtype ``output`` (the base's without)."""
    plan, folders = planned(family, steps, tokens, needs_base=needs_base, output=output, own=own)
    began = time.monotonic()
    statistics = statistics_of(plan, folders, work)
    measuring = time.monotonic() - began
    out = work / f"merged-{os.getpid()}"
    _clear(out)
    held, began, cpu = anonymous(), time.monotonic(), time.process_time()
    with peak_of() as peaks:
        run(plan, folders, out, budget_bytes=BUDGET, threads=1, survey="none", statistics=statistics)
    cost = Cost(
        time.monotonic() - began,
        time.process_time() - cpu,
        max(0, max(peaks) - held) / (1 << 20),
        measuring,
    )
    try:
        yield out, cost
    finally:
        _clear(out)


def _clear(out: Path) -> None:
    for folder in (out, out.with_name(out.name + ".partial")):
        shutil.rmtree(folder, ignore_errors=True)


def machine() -> str:
    """The processor and how many cores there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"
