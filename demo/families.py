"""The families of models the demo can merge: where they are, what is asked for, and how results are
compared.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OWNER = "demo"


@dataclass(frozen=True)
class EvaluationSet:
    """A file to score on; ``counts`` says whether it enters the mean by which models are compared."""

    name: str
    kind: str
    file: Path
    counts: bool = True


@dataclass(frozen=True)
class Family:
    """A base and its experts, published as ``demo/<prefix>-<name>``, and the merge the demo orders.

    ``folders`` holds ``base`` and the experts by name; ``metric`` is what the mean is made of.
    """

    prefix: str
    about: str
    folders: Mapping[str, Path]
    steps: tuple[Mapping[str, Any], ...]
    sets: tuple[EvaluationSet, ...]
    metric: str
    higher_is_better: bool

    def repo(self, name: str) -> str:
        """Where a member is served."""
        return f"{OWNER}/{self.prefix}-{name}"

    def recipe(self) -> dict[str, Any]:
        """The recipe of the demo's job."""
        experts = [name for name in self.folders if name != "base"]
        return {
            "base": self.repo("base"),
            "sources": [{"id": name, "model": self.repo(name)} for name in experts],
            "steps": [dict(step) for step in self.steps],
        }

    def publish(self, root: Path) -> None:
        """Puts every member into the folder of a folder Hub, unless it lies there already."""
        for name, folder in self.folders.items():
            target = root / self.repo(name)
            for file in sorted(folder.iterdir()):
                _copy_if_changed(file, target / file.name)


def _copy_if_changed(source: Path, target: Path) -> None:
    found = source.stat()
    if target.exists():
        there = target.stat()
        if (there.st_size, there.st_mtime_ns) == (found.st_size, found.st_mtime_ns):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def tiny(_cache: Path, _say: Callable[[str], None]) -> Family:
    """The family in this folder: 0.86 million parameters, trained by ``demo.train_family``."""
    home = HERE / "family"
    texts = home / "texts"
    return Family(
        prefix="tiny",
        about="a base of 0.86 million parameters and two experts, for Python code and for dictionary entries",
        folders={name: home / name for name in ("base", "python", "dictionary")},
        steps=({"method": "task_arithmetic", "scale": 0.5},),
        sets=(
            EvaluationSet("python", "perplexity", texts / "python.jsonl"),
            EvaluationSet("dictionary", "perplexity", texts / "dictionary.jsonl"),
            EvaluationSet("prose", "perplexity", texts / "prose.jsonl"),
            EvaluationSet("sums", "perplexity", texts / "sums.jsonl"),
            EvaluationSet("kinds", "choice", texts / "kinds.jsonl", counts=False),
        ),
        metric="bits_per_byte",
        higher_is_better=False,
    )


def smollm2(cache: Path, say: Callable[[str], None]) -> Family:
    """SmolLM2-135M-Instruct and three experts trained on the spot (minutes; kept in ``cache``)."""
    from demo.smollm2 import prepare
    from demo.smollm2_tasks import TASKS

    home = cache / "smollm2"
    texts = home / "texts/held-out"
    return Family(
        prefix="smollm2",
        about="SmolLM2-135M-Instruct and three experts: sums, sections of Debian packages, kinds of nouns",
        folders=prepare(home, say),
        steps=({"method": "task_arithmetic", "scale": 1.0},),
        sets=tuple(EvaluationSet(task, "choice", texts / f"{task}.jsonl") for task in TASKS),
        metric="accuracy",
        higher_is_better=True,
    )


FAMILIES: Mapping[str, Callable[[Path, Callable[[str], None]], Family]] = {"tiny": tiny, "smollm2": smollm2}
