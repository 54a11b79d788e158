"""What a score depends on, as one key: the bytes of the model, the items of the set, the scorer.

Loads without torch. Equal keys mean equal scores, so a score that is known need not be measured again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scoring.tasks import Task

SCORER_VERSION = 1
"""Goes up whenever the same model and set would give other numbers."""
NOT_SCORED = frozenset({"mergery.json", "README.md", "LICENSE", ".gitattributes"})
"""Files of a model folder that change no score."""


def model_digest(folder: Path, known: Mapping[str, str]) -> str:
    """sha256 (hex) over the names and contents of a model folder's files.

    ``known`` maps names to the sha256 (hex) of files that somebody has read already; the others are read.
    """
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and path.name not in NOT_SCORED and not path.name.startswith(".")
    )
    return _digest({name: known.get(name) or _sha256(folder / name) for name in names})


def score_key(model: str, task: Task, device: str) -> str:
    """sha256 (hex) of everything that decides the scores of one model on one set; the set's name does not.

    ``model`` is its ``model_digest``; of the device its type counts.
    """
    items = {name: value for name, value in asdict(task).items() if name != "name"}
    return _digest(
        {"scorer": SCORER_VERSION, "model": model, "task": items, "device": device.partition(":")[0]}
    )


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
