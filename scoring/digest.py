"""What a score depends on, as one key: the bytes of the model, the items of the set, the scorer.

Loads without torch. Equal keys mean equal scores, so a score that is known need not be measured again.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from scoring.tasks import Task

SCORER_VERSION = 5
"""Goes up whenever the same model and set would give other numbers, or more of them."""
NOT_SCORED = frozenset({"mergery.json", "README.md", "LICENSE", ".gitattributes"})
"""Files of a model folder that change no score."""


def model_digest(folder: Path, known: Mapping[str, str], coming: Iterable[str] = ()) -> str:
    """sha256 (hex) over the names and contents of a model folder's files.

    ``known`` maps names to the sha256 (hex) of files that somebody has read already; the others are read.
    Files that are ``coming`` count as if they were there.
    """
    there = {path.name for path in folder.iterdir() if path.is_file()}
    names = {name for name in there if name not in NOT_SCORED and not name.startswith(".")}
    return _digest({name: known.get(name) or _sha256(folder / name) for name in sorted({*names, *coming})})


def task_digest(task: Task) -> str:
    """sha256 (hex) of the items of a set, its kind and its settings; the set's name does not count."""
    names = [each.name for each in fields(task) if each.name not in ("name", "settings")]
    items = {name: _plain(getattr(task, name)) for name in names}
    return _digest({"scorer": SCORER_VERSION, "settings": task.settings.model_dump(mode="json"), **items})


def score_key(model: str, task: Task | str, device: str, head: str | None = None) -> str:
    """sha256 (hex) of everything that decides the scores of one model on one set.

    ``model`` is its ``model_digest``; a set may be given by its ``task_digest``; of the device its type
    counts; ``head`` is the digest of the model whose zero-shot head is used, if it is not the model's own.
    """
    digest = task if isinstance(task, str) else task_digest(task)
    return _digest({"model": model, "task": digest, "device": device.partition(":")[0], "head": head})


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
