"""A family of tiny models, bundles of it, and members given back."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge.__main__ import main
from merge.local import index_models, model_folders
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.report import Report
from merge.run import run
from tests import tiny

IDS = ("a", "b", "c")
RESULT = ("threshold", "rescale", "keep", "components", "exclude")
"""Settings that belong into ``result``."""


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model's folder, in float64."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {name: tensor.double() for name, tensor in load_file(path).items()}
    return found


@dataclass(frozen=True)
class Shop:
    """A folder with ``base`` and the experts ``expert1`` to ``expert3``."""

    root: Path

    def recipe(self, kind: str, *, steps: Any = ("task_arithmetic",), **changes: Any) -> dict[str, Any]:
        told = {key: changes.pop(key) for key in tuple(changes) if key in RESULT}
        told |= {"base": "inside"} if changes.pop("inside", False) else {}
        sources = [{"id": name, "model": f"expert{place + 1}"} for place, name in enumerate(IDS)]
        plain: dict[str, Any] = {"base": "base", "sources": sources, "steps": list(steps)}
        return plain | {"result": {"form": "bundle", "kind": kind, **told}, **changes}

    def make(self, recipe: dict[str, Any], out: str, **how: Any) -> Report:
        read = recipe_from(recipe)
        plan = make_plan(read, index_models(read, self.root), budget=1 << 30)
        options = {"budget_bytes": 1 << 30, "threads": 1, **how}
        return run(plan, model_folders(read, self.root), self.root / out, **options)

    def manifest(self, bundle: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / bundle / "bundle.json").read_bytes())
        return found

    def member(self, bundle: str, member: str, *options: str) -> dict[str, Tensor]:
        out = self.root / f"{bundle}-{member}{len(options)}"
        arguments = ["materialise", str(self.root / bundle), member, str(out), *options]
        assert main(arguments) == 0
        return weights(out)

    def weights(self, name: str) -> dict[str, Tensor]:
        return weights(self.root / name)


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32, so that a bundle's arithmetic can be told from rounding; the embedding is several blocks."""
    root = tmp_path_factory.mktemp("family")
    tiny.family(root, 3, dtype=torch.float32, hidden=32, vocab=2500)
    return root


@pytest.fixture
def shop(family: Path, tmp_path: Path) -> Shop:
    for path in family.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return Shop(tmp_path)
