"""Stands in for lm-evaluation-harness's process: gives an ``acc`` that depends on the weights alone, and
notes beside itself how many rows it was given. ``make eval`` has the real one.
"""

import json
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scoring.harness.run import run_harness


def stand_in(folder: Path, status: int = 0) -> Callable[..., Any]:
    """``run_harness`` with this file as its process, or one that ends with a status at once."""
    folder.mkdir(exist_ok=True)
    python = folder / "python"
    does = f'exec {sys.executable} {__file__} "$3" "$4" {folder}/rows' if not status else f"exit {status}"
    python.write_text(f"#!/bin/sh\n{does}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return partial(run_harness, python=str(python))


def rows_given(folder: Path) -> list[int]:
    """How many rows each run was given."""
    return [int(line) for line in (folder / "rows").read_text().split()]


def main(order: Path, result: Path, rows: Path) -> None:
    """Answers an order."""
    told = json.loads(order.read_bytes())
    weights = b"".join(path.read_bytes() for path in sorted(Path(told["folder"]).glob("*.safetensors")))
    found = {}
    for task in told["tasks"]:
        with rows.open("a") as file:
            file.write(f"{len(task['rows'])}\n")
        count = len(task["rows"]) or 4
        each = [sum(weights[at::97]) % 1009 / 1009 for at in range(count)]
        metrics = {"acc": {"value": sum(each) / count, "each": each}, "f1": {"value": 0.5, "each": []}}
        found[task["name"]] = {task["name"]: {"metrics": metrics, "items": count}}
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
