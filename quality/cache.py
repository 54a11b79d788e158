"""Where models, texts and results are kept: folders named after what decides their content."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

DEFAULT = Path("~/.cache/mergery/quality")
LIBRARIES = ("torch", "transformers", "tokenizers")


def key_of(facts: Mapping[str, Any]) -> str:
    """Twelve hex digits of the sha256 over canonical JSON.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def libraries() -> dict[str, str]:
    """Versions of what trains and runs the models."""
    return {name: version(name).partition("+")[0] for name in LIBRARIES}


def keyed_folder(root: Path, name: str, facts: Mapping[str, Any]) -> Path:
    """``root/name-<key>``, made with ``facts.json`` inside; other settings, versions or seeds are another."""
    whole = {**facts, "libraries": libraries()}
    folder = root / f"{name}-{key_of(whole)}"
    if not (folder / "facts.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "facts.json", json.dumps(whole, indent=2, default=str))
    return folder


def write(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all, also where two processes write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(partial).replace(path)


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when all is in it."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What the JSON file ``path`` holds, made and kept where it is not there."""
    if not path.exists():
        write(path, json.dumps(make(), indent=1, ensure_ascii=False))
    return json.loads(path.read_text(encoding="utf-8"))
