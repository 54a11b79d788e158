"""Recipes of slices, the small models that they are of, and what comes of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from merge.errors import Finding
from merge.plan import Plan, make_plan, plan_or_findings
from merge.recipe.recipe import recipe_from
from merge.run import run
from tests.merge import exact

GIB = 1 << 30
PER_LAYER = {
    "self_attn.q_proj.weight": (16, 16), "mlp.up_proj.weight": (24, 16), "input_layernorm.weight": (16,),
}  # fmt: skip


OUTER = {"model.embed_tokens.weight": (20, 16), "model.norm.weight": (16,), "lm_head.weight": (20, 16)}
UP = "model.layers.{}.mlp.up_proj.weight"


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    inner = {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in PER_LAYER.items()}
    return {"model.embed_tokens.weight": OUTER["model.embed_tokens.weight"], **inner, **OUTER}


def document(slices: list[dict[str, Any]], steps: Any = ("passthrough",), **more: Any) -> dict[str, Any]:
    sources = [{"id": name, "model": name} for name in ("a", "b", "deep")]
    return {"base": "base", "sources": sources, "steps": list(steps), "slices": slices, **more}


def part(*sources: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    return {"sources": [{"id": name, "layers": [first, end]} for name, first, end in sources], **more}


def planned(folders: Mapping[str, Path], found: dict[str, Any]) -> Plan:
    return make_plan(recipe_from(found), exact.indices(folders), budget=GIB)


def merged(
    folders: Mapping[str, Path], out: Path, found: dict[str, Any], **more: Any
) -> dict[str, torch.Tensor]:
    report = run(planned(folders, found), folders, out, budget_bytes=GIB, threads=1, survey="none", **more)
    files = [file.file for file in report.files if file.file.endswith(".safetensors")]
    return {name: tensor for file in files for name, tensor in load_file(out / file).items()}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def errors(folders: Mapping[str, Path], found: dict[str, Any]) -> list[Finding]:
    plan, findings = plan_or_findings(recipe_from(found), exact.indices(folders), budget=GIB)
    assert plan is None
    return [finding for finding in findings if finding.severity == "error"]


def mean(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.stack([tensor.float() for tensor in tensors]).mean(dim=0).to(torch.bfloat16)


STACK = [part(("a", 0, 3)), part(("b", 1, 4)), part(("a", 2, 4))]
GROWN = [part(("a", 0, 2)), part(("a", 1, 3))]
