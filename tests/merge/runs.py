"""Runs of the chains of ``references`` over models made of integers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from merge.plan import Plan
from merge.report import Report
from merge.run import run
from tests.merge import references
from tests.merge.references import BUDGET, CHAINS


def planned(folders: Mapping[str, Path], chain: str = "ties", **more: Any) -> Plan:
    used, steps = CHAINS[chain]
    return references.planned(folders, used, more.pop("steps", steps), **more)


def merged(
    plan: Plan, folders: Mapping[str, Path], out: Path, threads: int = 1, budget: int = BUDGET, **more: Any
) -> Report:
    return run(plan, folders, out, budget_bytes=budget, threads=threads, **more)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}
