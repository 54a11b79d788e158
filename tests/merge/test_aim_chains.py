"""AIM after every combine method that there is, in whole runs: the formula, entry by entry, on the result."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge.arch.roles import role_of
from merge.checkpoint.index import ModelIndex
from merge.contract.method import Kind, Method
from merge.learn.statistics import FILE
from merge.plan import make_plan
from merge.recipe.recipe import Recipe, recipe_from
from merge.run import run
from tests import tiny
from tests.merge import exact, informed, stages
from tests.merge.every import ALL, count_of
from tests.merge.results import adapters

BUDGET = 256 << 20
OMEGA = 0.3
LAYER = {"self_attn.q_proj": (16, 16), "mlp.up_proj": (40, 16), "input_layernorm": (16,)}
SHAPES: Mapping[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (30, 16),
    **{f"model.layers.{n}.{name}.weight": shape for n in range(2) for name, shape in LAYER.items()},
    "model.norm.weight": (16,),
    "lm_head.weight": (30, 16),
}
COMBINES = [method for method in ALL if method.kind is Kind.COMBINE]


@dataclass(frozen=True)
class Shop:
    """A base, three models and three adapters over the base, and the statistics of all of them."""

    root: Path

    def merge(self, method: Method, out: Path, **aim: Any) -> dict[str, Tensor]:
        """The method alone, or with AIM after it where ``aim`` has settings; what is written is float32."""
        plain = [{"id": name, "model": name} for name in "abc"[: count_of(method)]]
        lent = [{"id": each["id"], "model": "base", "adapter": f"lora-{each['id']}"} for each in plain]
        recipe = recipe_from({
            "base": "base",
            "sources": lent if method.needs.factors else plain,
            "steps": [method.name, *([{"method": "aim", **aim}] if aim else [])],
            "dtype": {"output": "float32"},
        })  # fmt: skip
        models = adapters.models_of(self.root, recipe)
        folders = {key: self.root / index.label for key, index in models.items()}
        folders |= {f"{each.id}+adapter": self.root / each.adapter for each in recipe.sources if each.adapter}
        return self._run(recipe, models, folders, out)

    def over(self, method: Method, out: Path, **aim: Any) -> dict[str, Tensor]:
        """AIM over the method's whole result, which is a stage."""
        plain = [{"id": name, "model": name} for name in "abc"[: count_of(method)]]
        inner = {"base": "base", "sources": plain, "steps": [method.name], "dtype": {"output": "float32"}}
        recipe = recipe_from({
            "stages": {"merged": inner},
            "base": "base",
            "sources": [{"id": "merged", "model": "stage:merged"}],
            "steps": ["passthrough", {"method": "aim", **aim}],
            "dtype": {"output": "float32"},
        })  # fmt: skip
        known = {name: self.root / name for name in ("base", *"abc")}
        return self._run(recipe, stages.indices(recipe, known), stages.at(recipe, known), out)

    def _run(
        self, recipe: Recipe, models: dict[str, ModelIndex], folders: dict[str, Path], out: Path
    ) -> dict[str, Tensor]:
        plan = make_plan(recipe, models, budget=BUDGET, measured=informed.of_all(models))
        known = informed.folders_for(plan, self.root)
        run(plan, folders, out, budget_bytes=BUDGET, threads=1, statistics=known, survey="none")
        return adapters.weights(out)

    def held(self, name: str) -> Tensor:
        """How active the base is at each entry of a tensor, 0 to 1, from the file of statistics."""
        activity = load_file(self.root / "base.statistics" / FILE).get(f"mean_abs_input/{name}")
        return torch.zeros(()) if activity is None else activity.double() / activity.double().max()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    exact.family(root, shapes=SHAPES)
    modules = {name.removesuffix(".weight"): SHAPES[name] for name in SHAPES if "_proj" in name}
    for number, name in enumerate("abc"):
        tiny.lora(root / f"lora-{name}", modules, seed=number)
    return Shop(root)


@pytest.mark.parametrize("method", COMBINES, ids=[method.name for method in COMBINES])
def test_after_every_combine_method_aim_is_its_formula(shop: Shop, tmp_path: Path, method: Method) -> None:
    plain = shop.merge(method, tmp_path / "plain")
    informed_ = shop.merge(method, tmp_path / "informed", omega=OMEGA)
    uniform = shop.merge(method, tmp_path / "uniform", omega=OMEGA, control="uniform")
    base = adapters.weights(shop.root / "base")
    changed = 0
    for name, start in base.items():
        if method.classes.get(role_of(name, tuple(start.shape), exact.CONFIG), "method") != "method":
            assert torch.equal(informed_[name], plain[name]), "averaged by its class, not by the steps"
            continue
        change = plain[name] - start
        wanted = change * (1 - shop.held(name) * (1 - OMEGA))
        scale = float(plain[name].abs().max() + start.abs().max())
        assert float((informed_[name] - start - wanted).abs().max()) <= 4e-7 * scale, name
        left = uniform[name] - start
        assert abs(float(left.norm() - wanted.norm())) <= 2e-6 * scale * start.numel() ** 0.5, name
        assert float(change.norm() * left.norm() - (change * left).sum()) <= 1e-5 * scale**2 * start.numel()
        changed += float(wanted.norm()) < 0.99 * float(change.norm())
    assert changed or method.name == "layer_swap", "AIM held something back"


def test_as_a_stage_of_its_own_it_holds_heads_back_that_a_method_averages(shop: Shop, tmp_path: Path) -> None:
    """Spectral methods leave heads to an average; over a whole merged model AIM leaves nothing out."""
    (iso,) = (method for method in COMBINES if method.name == "iso_c")
    plain = shop.merge(iso, tmp_path / "plain")
    found = shop.over(iso, tmp_path / "over", omega=OMEGA)
    for name, start in adapters.weights(shop.root / "base").items():
        wanted = start + (plain[name] - start) * (1 - shop.held(name) * (1 - OMEGA))
        assert float((found[name] - wanted).abs().max()) <= 4e-7 * float(1 + start.abs().max()), name
    assert not torch.equal(found["lm_head.weight"], plain["lm_head.weight"])


def test_every_combine_method_of_the_catalogue_is_among_them() -> None:
    from merge.catalog import catalogue

    known = {name for name, entry in catalogue().items() if entry.kind == "combine"}
    assert {method.name for method in COMBINES} == known
