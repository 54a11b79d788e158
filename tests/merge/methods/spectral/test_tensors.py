"""What every spectral method makes of tensors that are no plain matrix and of orientation; its memory."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge.checkpoint.index import index_folder
from merge.contract.groups import Site
from merge.contract.method import Kind, registered
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run
from merge.running.chain import Block, Chain
from tests.merge import exact
from tests.merge.methods.spectral.plain import close, deltas_of, merged
from tests.merge.test_memory import WATCHED
from tests.merge.whole import bound, merge_all, merge_one
from tests.tiny import write_tensors

SPECTRAL = [name for name, method in registered().items() if method.family == "spectral"]
EVERY = pytest.mark.parametrize("name", SPECTRAL)
PLAIN: Mapping[str, dict[str, Any]] = {"opcm": {"scope": "tensor"}, "doge": {"scope": "tensor"}}
"""Settings under which a tensor's result depends on that tensor alone."""
KEPT_APART = ("opcm", "doge")
"""Methods whose lengths or ranks are of a whole tensor, so that a stack is not its matrices one by one."""


def alone(
    name: str, base: Tensor, deltas: list[Tensor], role: str = "linear", turned: bool = False
) -> Tensor:
    """One tensor by one method, as the engine calls it, where no stat is needed beforehand."""
    site = Site("w", role, tuple(base.shape), tuple(f"m{place}" for place in range(len(deltas))), turned)
    settings = {"density": 1.0, **PLAIN[name]} if name == "doge" else PLAIN.get(name, {})
    chain = Chain(site, bound([(name, settings)], len(deltas)), (1.0,) * len(deltas), 0)
    return chain.compute(Block(0, tuple(base.shape), base, [base + delta for delta in deltas]))


def test_there_are_several() -> None:
    assert len(SPECTRAL) >= 8
    assert all(registered()[name].kind is Kind.COMBINE for name in SPECTRAL)
    assert all(registered()[name].workspace is not None for name in SPECTRAL)


@EVERY
@pytest.mark.parametrize("shape", [(7,), (4, 3, 3, 3), (5, 6, 2)], ids=str)
def test_vectors_and_kernels_are_averaged(name: str, shape: tuple[int, ...]) -> None:
    deltas = deltas_of(3, shape)
    wanted = sum(deltas[1:], deltas[0])
    found = merged(name, deltas, **PLAIN.get(name, {}))
    if name == "opcm":
        norms = [float(torch.linalg.vector_norm(delta)) for delta in deltas]
        wanted = wanted * sum(norms) / float(torch.linalg.vector_norm(wanted))
    assert close(found, wanted / 3, 1e-12)


@EVERY
@pytest.mark.parametrize("shape", [(6, 11), (11, 6)], ids=str)
def test_a_weight_stored_as_inputs_and_outputs_is_turned(name: str, shape: tuple[int, int]) -> None:
    base, *deltas = deltas_of(4, shape)
    wanted = alone(name, base, deltas)
    assert close(alone(name, base.T.contiguous(), [d.T for d in deltas], turned=True).T, wanted, 1e-9)


@EVERY
def test_a_stack_of_experts_is_merged_expert_by_expert(name: str) -> None:
    base, *deltas = deltas_of(4, (3, 7, 5))
    found = alone(name, base, deltas, role="expert")
    if name in KEPT_APART:
        assert found.shape == base.shape
        return
    each = [alone(name, base[e], [delta[e] for delta in deltas]) for e in range(3)]
    assert close(found, torch.stack(each), 1e-12)


@EVERY
def test_a_stack_stored_as_inputs_and_outputs_is_turned(name: str) -> None:
    base, *deltas = deltas_of(4, (3, 7, 5))
    wanted = alone(name, base, deltas, role="expert")
    turned = [tensor.mT.contiguous() for tensor in (base, *deltas)]
    assert close(alone(name, turned[0], turned[1:], role="expert", turned=True).mT, wanted, 1e-9)


def test_experts_one_below_the_other_are_a_stack(tmp_path: Path) -> None:
    """DBRX's: w1 as outputs and inputs, w2 as inputs and outputs."""
    config, folders = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 3}}, {}
    values = dict(zip("wab", deltas_of(3, (21, 5)), strict=True))
    for name, value in values.items():
        tensors = {f"transformer.blocks.0.ffn.experts.mlp.{part}": value.float() for part in ("w1", "w2")}
        folders[name] = tmp_path / name
        folders[name].mkdir()
        write_tensors(folders[name], tensors)
        (folders[name] / "config.json").write_text(json.dumps(config))
    sources = [{"id": name, "model": name} for name in "ab"]
    recipe = recipe_from({"base": "w", "sources": sources, "steps": [{"method": "wudi"}]})
    models = {key: index_folder(folders[key]) for key in "ab"} | {"base": index_folder(folders["w"])}
    plan = make_plan(recipe, models, budget=1 << 30)
    at = {"base": folders["w"], "a": folders["a"], "b": folders["b"]}
    run(plan, at, tmp_path / "out", budget_bytes=1 << 30, threads=1, survey="none")
    made = load_file(next((tmp_path / "out").glob("*.safetensors")))
    base, *others = (value.float().view(3, 7, 5) for value in values.values())
    for part, turned in (("w1", False), ("w2", True)):
        wanted = alone("wudi", base, [other - base for other in others], role="expert", turned=turned)
        found = made[f"transformer.blocks.0.ffn.experts.mlp.{part}"]
        assert torch.allclose(found.view(3, 7, 5), wanted, atol=1e-6)


@EVERY
def test_biases_of_a_stack_of_experts_are_merged_as_vectors(name: str) -> None:
    bias, (base, *deltas) = "mlp.experts.gate_up_proj_bias", deltas_of(4, (4, 6))
    sources = [base + delta for delta in deltas]
    made = merge_all([(name, {})], {bias: (base, sources)}, role="expert")[bias]
    kernels = [tensor.view(4, 6, 1, 1) for tensor in (base, *sources)]
    assert torch.equal(made, merge_one([(name, {})], kernels[0], kernels[1:]).view(4, 6))


@EVERY
def test_scale_zero_gives_the_base(name: str) -> None:
    base, *deltas = deltas_of(4, (6, 9))
    site = Site("w", "linear", (6, 9), ("a", "b", "c"))
    settings = {**PLAIN.get(name, {}), "scale": 0.0, **({"density": 1.0} if name == "doge" else {})}
    chain = Chain(site, bound([(name, settings)], 3), (1.0,) * 3, 0)
    assert torch.equal(chain.compute(Block(0, (6, 9), base, [base + d for d in deltas])), base)


@EVERY
def test_classes_and_orientation_follow_the_plan(tmp_path: Path, name: str) -> None:
    """GPT-2 stores its weights turned; embeddings and heads are left to the policy of their class."""
    shapes = {"transformer.h.0.attn.c_attn.weight": (24, 72), "transformer.wte.weight": (40, 24)}
    kept = {"config": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "dtype": torch.float32}
    folders = {n: exact.write(tmp_path / n, n, shapes, **kept) for n in ("base", "a", "b")}  # type: ignore[arg-type]
    document = {
        "base": "base",
        "sources": [{"id": n, "model": n} for n in "ab"],
        "steps": [{"method": name, **PLAIN.get(name, {})}],
    }
    plan = make_plan(recipe_from(document), exact.indices(folders), budget=1 << 30)
    policies = {output.role: output.policy for output in plan.outputs}
    assert policies == {"linear": "method", "embed": registered()[name].classes["embed"]}
    run(plan, folders, tmp_path / "out", budget_bytes=1 << 30, threads=1)
    made = read(tmp_path / "out")["transformer.h.0.attn.c_attn.weight"]
    base, *sources = (read(folders[n])["transformer.h.0.attn.c_attn.weight"] for n in ("base", "a", "b"))
    if name != "doge":
        wanted = alone(name, base.T.contiguous(), [source.T - base.T for source in sources]).T
        assert close(made, wanted, 1e-6)


def read(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


SHAPES = {"wide": (640, 1700), "tall": (1700, 640), "square": (2048, 2048)}


@pytest.mark.parametrize(
    ("name", "shape"), [*((name, "wide") for name in SPECTRAL), ("knots", "tall"), ("iso_c", "square")]
)
def test_memory_stays_under_the_estimate(tmp_path: Path, name: str, shape: str) -> None:
    """Anonymous memory, while it merges one tensor on the least budget that the plan accepts for it."""
    rows, columns = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(rows, columns, generator=generator)
    for model in ("base", "s0", "s1", "s2"):
        change = 0.0 if model == "base" else torch.randn(rows, columns, generator=generator) / 50
        tensors = {"model.layers.0.mlp.up_proj.weight": (base + change).to(torch.bfloat16)}
        write_tensors(tmp_path / model, tensors, 1)
        (tmp_path / model / "config.json").write_text("{}")
    document = {
        "base": "base",
        "sources": [{"id": n, "model": n} for n in ("s0", "s1", "s2")],
        "steps": [{"method": name, **({"steps": 3} if name == "doge" else {})}],
    }
    folders = {name: tmp_path / name for name in ("base", "s0", "s1", "s2")}
    plan = make_plan(recipe_from(document), exact.indices(folders), budget=1 << 34)
    least = plan.demand.least_budget
    command = [sys.executable, "-c", WATCHED, str(tmp_path), json.dumps(document), str(least)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert told["seen"] > 10
    assert told["peak"] < least
